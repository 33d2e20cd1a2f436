import { resolve } from 'node:path';
import type { RestorePlan } from '../../agent/restore/plan.ts';
import type { RestoreRequest } from '../../agent/restore/planner.ts';
import { formatBytes } from '../../common/units.ts';
import type { RunVerb } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import type { Options } from '../options.ts';
import { styled, type Text } from '../output.ts';
import { changing } from '../session.ts';

/** `stillpoint restore BACKUP`: plan, question, work. */
export const restore: RunVerb = (cli, [backup = ''], options) =>
  changing(cli, async ({ agent, view, interruption }) => {
    const plan = await agent.planRestore({ backup, ...requestOf(options) });
    const { terminal } = cli;
    if (terminal.json) terminal.object({ plan });
    else printPlan((...parts) => terminal.out(...parts), plan);
    await confirm(cli, options, interruption.signal);
    const created = agent.createRestore(plan);
    view.name(created.id, created.machineName);
    if (interruption.signal.aborted) agent.parts.journal.requestCancel(created.id);
    const job = await agent.run(created);
    view.end();
    const code = exitCodeOfJob(job);
    if (code !== 0) terminal.error(new JobFailure(job), plan.machine.name);
    if (terminal.json)
      terminal.object({ job: { id: job.id, state: job.state, error: job.error }, machine: plan.machine });
    else if (code === 0)
      terminal.out(
        styled('green', 'restored '),
        styled('bold', plan.machine.name),
        ` as of ${plan.backup.pointInTime}: ${endOf(plan)}`,
      );
    return code;
  });

function requestOf(options: Options): RestoreRequest {
  const start = options.text('start');
  const to = options.text('to');
  return {
    as: options.text('as'),
    inPlace: options.flag('inPlace'),
    // The job may go on in a process that stands somewhere else.
    to: to === undefined ? undefined : resolve(to),
    start: start === 'resume' || start === 'boot' || start === 'none' ? start : undefined,
  };
}

const ends: Readonly<Record<RestorePlan['start'], string>> = {
  resume: 'it goes on from that instant',
  boot: 'it boots',
  none: 'it is off',
};

function endOf(plan: RestorePlan): string {
  if (plan.kind === 'files') return `files in ${plan.volumes.map(({ image }) => image).join(', ')}`;
  if (plan.start === 'resume' && !plan.runningAtPoint)
    return 'it stands at that instant, suspended as it was';
  return ends[plan.start];
}

function printPlan(out: (...parts: readonly Text[]) => void, plan: RestorePlan): void {
  const whats: Readonly<Record<RestorePlan['kind'], string>> = {
    'in-place': `${plan.present === null ? 'as' : 'over'} the machine ${plan.machine.name}`,
    'new-machine': `as the new machine ${plan.machine.name} (${plan.machine.uuid})`,
    files: 'files only, no machine',
  };
  out(styled('bold', 'Restore'), ` of backup ${plan.backup.id} from storage ${plan.backup.storage}`);
  out(`  to the instant ${plan.backup.pointInTime}, ${whats[plan.kind]}`);
  if (plan.kind !== 'files')
    out(`  afterwards: ${endOf(plan)}${plan.linksDown ? ', its network links down' : ''}`);
  for (const volume of plan.volumes) {
    out(`  ${volume.target}: ${volume.image}, ${formatBytes(volume.artifact.sizeBytes)}`);
  }
  if (plan.nvram !== null) out(`  NVRAM: ${plan.nvram.path}`);
  if (plan.memory !== null) out(`  memory: ${formatBytes(plan.memory.artifact.sizeBytes)}`);
  if (plan.macs.length > 0) out(`  MAC addresses: ${plan.macs.join(', ')}`);
  for (const conflict of plan.conflicts) out(styled('yellow', `  ${conflict.kind}: `), conflict.message);
}
