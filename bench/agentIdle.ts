import { setTimeout as sleep } from 'node:timers/promises';
import type { AgentSetup } from '../test/lab/agentProcess.ts';
import { type AgentBench, startService } from './agentBench.ts';
import { processTree, type TreeMember } from './processTree.ts';
import { type Summary, summarize } from './statistics.ts';

const mib = 1024 * 1024;
/** What was loaded, connected and looked at for the start alone has ended by then. */
const settleMs = 30_000;

/** A schedule that nothing is due of for long. */
const yearly = { cron: '0 3 29 2 *' };

/** What a service is made to do, from nothing to all that costs something while nothing happens. */
const forms: Readonly<Record<string, AgentSetup['rest']>> = {
  nothing: {},
  schedule: { policies: { default: { schedule: yearly } } },
  'schedule, metrics': {
    policies: { default: { schedule: yearly } },
    metrics: { listen: '127.0.0.1:0' },
  },
};

interface Idle {
  /** Service and children, proportional set size. */
  readonly pssMiB: Summary;
  readonly processes: Summary;
  /** Of all of them, those too that came and went. */
  readonly processorMsPerMinute: Summary;
  /** What there was at the end. */
  readonly last: readonly { readonly what: string; readonly pssMiB: number }[];
}

/** Memory and processor time of a service that has nothing to do, with one machine that is off. */
export async function measureIdle({ lab, command, rounds, idleSeconds }: AgentBench): Promise<object> {
  const results: Record<string, Idle> = {};
  await lab.createMachine({ name: 'sp-idle', volumes: [{ target: 'vda', sizeMiB: 16 }] }, { start: false });
  const agent = await lab.installAgent({ command, name: 'idle' });
  for (const [name, rest] of Object.entries(forms)) {
    await agent.configure({ rest });
    await using service = await startService(agent);
    await sleep(settleMs);
    results[name] = await measure(service.pid, rounds, idleSeconds);
    process.stderr.write(`idle, ${name}: ${JSON.stringify(results[name])}\n`);
  }
  return { settledSeconds: settleMs / 1000, idleSeconds, forms: results };
}

async function measure(pid: number, rounds: number, idleSeconds: number): Promise<Idle> {
  const pssMiB: number[] = [];
  const processes: number[] = [];
  const processorMs: number[] = [];
  let before = await processTree(pid);
  for (let round = 0; round < rounds; round += 1) {
    const beganMs = performance.now();
    await sleep(idleSeconds * 1000);
    const now = await processTree(pid);
    const minutes = (performance.now() - beganMs) / 60_000;
    pssMiB.push(now.reduce((sum, { pssBytes }) => sum + pssBytes, 0) / mib);
    processes.push(now.length);
    processorMs.push((spentMs(now, pid) - spentMs(before, pid)) / minutes);
    before = now;
  }
  const last = before.map(({ what, pssBytes }) => ({ what, pssMiB: Math.round((10 * pssBytes) / mib) / 10 }));
  return {
    pssMiB: summarize(pssMiB),
    processes: summarize(processes),
    processorMsPerMinute: summarize(processorMs),
    last,
  };
}

/** What a tree has spent: its root with the children that are gone, and the children that there are. */
function spentMs(tree: readonly TreeMember[], rootPid: number): number {
  return tree.reduce(
    (sum, { pid, ownMs, goneChildrenMs }) => sum + ownMs + (pid === rootPid ? goneChildrenMs : 0),
    0,
  );
}
