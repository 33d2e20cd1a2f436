/**
 * npm run bench -- agent [ROUNDS] [--phases LIST] [--idle-seconds N] [--machines N]: what the service costs while nothing
 * happens, and how soon something does. docs/SPEED.md says how each figure is made. Phases, all of them unless told:
 *   idle       memory (PSS) of the built service and its children, and their processor time
 *   trigger    from StartBackup over the socket to the first step of the job, on a real libvirt
 *   schedules  the share of a core that the schedules of 10 000 machines take
 */
import { parseArgs } from 'node:util';
import { startLab } from '../test/lab/lab.ts';
import type { AgentBench } from './agentBench.ts';
import { measureIdle } from './agentIdle.ts';
import { measureSchedules } from './agentSchedules.ts';
import { measureTrigger } from './agentTrigger.ts';
import { roundsFrom, toolVersions } from './flows.ts';
import { buildProduct } from './product.ts';

const phases = {
  idle: measureIdle,
  trigger: measureTrigger,
  schedules: measureSchedules,
} satisfies Record<string, (bench: AgentBench) => Promise<object>>;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    phases: { type: 'string', default: Object.keys(phases).join(',') },
    'idle-seconds': { type: 'string', default: '60' },
    machines: { type: 'string', default: '10000' },
  },
});

async function main(): Promise<void> {
  const rounds = roundsFrom('agent', positionals[0]);
  const wanted = values.phases.split(',');
  await using lab = await startLab();
  const command = await buildProduct(lab);
  const idleSeconds = Number(values['idle-seconds']);
  const bench = { lab, command, rounds, idleSeconds, machines: Number(values.machines) };
  const results: Record<string, object> = {};
  for (const [name, measure] of Object.entries(phases))
    if (wanted.includes(name)) results[name] = await measure(bench);
  const versions = await toolVersions(lab);
  console.log(JSON.stringify({ bench: 'agent', rounds, ...versions, ...results }, null, 2));
}

await main();
