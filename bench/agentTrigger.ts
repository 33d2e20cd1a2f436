import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { credentials, Metadata } from '@grpc/grpc-js';
import { isErrno } from '../common/errors.ts';
import { newId } from '../common/ids.ts';
import { AgentClient, type GetJobResponse } from '../proto/generated/stillpoint/v1/agent.ts';
import { eventually } from '../test/lab/lab.ts';
import { answerOf, firstJob, startBackup, watched } from '../test/sim/servedSite.ts';
import { type AgentBench, startService } from './agentBench.ts';
import { type Summary, summarize } from './statistics.ts';

const machine = 'sp-trigger';

/** How the children that speak with libvirt are when the call comes. */
const forms = ['warm', 'cold'] as const;
type Form = (typeof forms)[number];

interface Trigger {
  /** From the call to the begin of the first step, by the journal's time; both clocks count whole milliseconds. */
  readonly firstStepMs: Summary;
  /** Until the call was answered. */
  readonly answerMs: Summary;
}

/**
 * How soon after `StartBackup` over the socket the first step of the job begins, of a machine that runs: while the
 * service has its child for questions to libvirt (warm), and just after that was killed (cold).
 */
export async function measureTrigger({ lab, command, rounds }: AgentBench): Promise<object> {
  const guest = await lab.createMachine({
    name: machine,
    memoryMiB: 96,
    rate: 1,
    volumes: [{ target: 'vda', sizeMiB: 16 }],
  });
  await guest.waitUntilWriting();
  const agent = await lab.installAgent({
    command,
    name: 'trigger',
    rest: { policies: { default: { mode: 'disk', incremental: false } } },
  });
  await using service = await startService(agent);
  const socket = join(lab.root, 'run/stillpoint/agent.sock');
  const client = new AgentClient(`unix:${socket}`, credentials.createInsecure());
  const samples: Record<Form, { firstStep: number[]; answer: number[] }> = {
    warm: { firstStep: [], answer: [] },
    cold: { firstStep: [], answer: [] },
  };
  try {
    for (let round = 0; round <= rounds; round += 1) {
      for (const form of forms) {
        await eventually(async () => (await childrenOf(service.pid)).length > 0, { timeoutMs: 60_000 });
        if (form === 'cold') await killChildren(service.pid);
        const { firstStepMs, answerMs } = await trigger(client);
        process.stderr.write(`trigger ${round}/${rounds}: ${form} ${firstStepMs} ms\n`);
        if (round === 0) continue;
        samples[form].firstStep.push(firstStepMs);
        samples[form].answer.push(answerMs);
      }
    }
  } finally {
    client.close();
  }
  const of = ({ firstStep, answer }: (typeof samples)[Form]): Trigger => ({
    firstStepMs: summarize(firstStep),
    answerMs: summarize(answer),
  });
  return { warm: of(samples.warm), cold: of(samples.cold) };
}

/** Begins a backup, and waits for its end. */
async function trigger(client: AgentClient): Promise<{ firstStepMs: number; answerMs: number }> {
  const sentMs = Date.now();
  const response = await startBackup(client, { machines: [machine], idempotencyKey: newId() });
  const answerMs = Date.now() - sentMs;
  const { id } = firstJob(response);
  await watched(client, id);
  const { job, steps } = await answerOf<GetJobResponse>((done) =>
    client.getJob({ id }, new Metadata(), done),
  );
  const begunMs = steps[0]?.startedAt?.getTime();
  if (begunMs === undefined || job?.error !== undefined)
    throw new Error(`the backup failed: ${job?.error?.code ?? 'it has no step'}`);
  return { firstStepMs: begunMs - sentMs, answerMs };
}

/** Resolves when the process has noticed. */
async function killChildren(pid: number): Promise<void> {
  const killed = await childrenOf(pid);
  for (const child of killed) process.kill(child, 'SIGKILL');
  await eventually(async () => !(await childrenOf(pid)).some((child) => killed.includes(child)), {
    intervalMs: 2,
  });
}

/** The children of a process, all of which speak with libvirt while nothing is backed up. */
async function childrenOf(pid: number): Promise<readonly number[]> {
  const children: number[] = [];
  for (const task of await readdir(`/proc/${pid}/task`)) {
    try {
      const text = await readFile(`/proc/${pid}/task/${task}/children`, 'utf8');
      children.push(...text.split(' ').filter(Boolean).map(Number));
    } catch (error) {
      // A thread that has just ended.
      if (!isErrno(error, 'ENOENT') && !isErrno(error, 'ESRCH')) throw error;
    }
  }
  return children;
}
