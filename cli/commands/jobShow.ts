import type { Agent } from '../../agent/agent.ts';
import { hookKinds, type HookKind, type HookRun } from '../../agent/backup/hookFacts.ts';
import type { JobRow } from '../../agent/jobs/job.ts';
import { describeChoice } from '../../agent/storageStates.ts';
import { formatDuration } from '../../common/time.ts';
import { formatBytes } from '../../common/units.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { filesOfBackup, type JobFile } from '../jobFiles.ts';
import { holdOf, jobJson, pauseText, stateText, timeOf } from '../jobView.ts';
import { styled, type Text } from '../output.ts';
import { describeProgress } from '../progress.ts';
import { reading } from '../session.ts';

/** `stillpoint job show ID`. */
export const jobShow: RunVerb = (cli, [id = '']) =>
  reading(cli, async ({ agent }) => {
    const { journal } = agent.parts;
    const job = journal.get(id);
    if (cli.terminal.json)
      cli.terminal.object({
        ...jobJson(journal, job),
        steps: journal.steps(job.id),
        backup: backupOf(agent, job),
        files: await filesOf(agent, job),
      });
    else printJob(cli, agent, job, await filesOf(agent, job));
    return 0;
  });

/** Files of a backup job. */
async function filesOf(agent: Agent, job: JobRow): Promise<readonly JobFile[]> {
  const facts = agent.backupFacts(job);
  return facts === undefined ? [] : filesOfBackup(facts);
}

/** What a backup job has found out so far; `null` for another job. */
function backupOf(agent: Agent, job: JobRow): Readonly<Record<string, unknown>> | null {
  const facts = agent.backupFacts(job);
  if (facts === undefined) return null;
  const { backupId, pointInTime, pauseMs, warnings, settings, committed } = facts;
  const { mode, modeReason, storages, storageChoices, labels } = settings;
  return {
    id: backupId,
    pointInTime: pointInTime ?? null,
    pauseMs: pauseMs ?? null,
    committed: committed === true,
    mode,
    modeReason,
    storages,
    storageChoices,
    labels,
    warnings,
    hooks: facts.hooks ?? null,
  };
}

function printJob(cli: Cli, agent: Agent, job: JobRow, files: readonly JobFile[]): void {
  const { terminal } = cli;
  const { journal } = agent.parts;
  const hold = holdOf(journal, job);
  const field = (name: string, ...value: readonly Text[]): void =>
    terminal.out(styled('bold', name.padEnd(16)), ...value);
  field('Job', job.id);
  field('Kind', job.kind);
  field('Machine', `${job.machineName} (${job.machineUuid})`);
  field('State', stateText(job, hold));
  field('Begun', timeOf(job.createdAtMs));
  if (job.finishedAtMs !== null)
    field(
      'Ended',
      `${timeOf(job.finishedAtMs)}, after ${formatDuration(job.finishedAtMs - job.createdAtMs)}`,
    );
  if (job.pause !== null)
    field('Held', `${pauseText(job.pause)}, until ${timeOf(job.pause.untilMs)} at the latest`);
  const progress = hold === 'running' ? journal.progress(job.id) : undefined;
  if (progress !== undefined) field('Progress', describeProgress(progress));
  const facts = agent.backupFacts(job);
  if (facts !== undefined) {
    field('Backup', facts.backupId);
    field('Storages', facts.settings.storages.join(', '));
    for (const choice of facts.settings.storageChoices) field('Choice', describeChoice(choice));
    if (facts.pointInTime !== undefined) field('Point in time', facts.pointInTime);
    if (typeof facts.pauseMs === 'number') field('Pause', formatDuration(facts.pauseMs));
    for (const warning of facts.warnings) field('Warning', styled('yellow', warning));
    for (const kind of hookKinds) printHook(field, kind, facts.hooks?.[kind]);
  }
  for (const file of files) field('File', fileText(file));
  for (const { name, status, durationMs } of journal.steps(job.id)) {
    field(
      'Step',
      `${name.padEnd(10)} ${status}${durationMs === null ? '' : `, ${formatDuration(durationMs)}`}`,
    );
  }
  if (job.error === null) return;
  field('Error', styled('red', `${job.error.code}: ${job.error.message}`));
  if (job.error.hint !== undefined) field('Hint', job.error.hint);
}

function printHook(
  field: (name: string, ...value: readonly Text[]) => void,
  kind: HookKind,
  run: HookRun | undefined,
): void {
  if (run === undefined) return;
  const { state, durationMs, problem, output } = run;
  const took = durationMs === null ? '' : `, ${formatDuration(durationMs)}`;
  field('Hook', `${kind} ${state}${took}${problem === null ? '' : `: ${problem}`}`);
  if (output !== '') for (const line of output.split('\n')) field('', line);
}

function fileText({ role, target, storage, path, sizeBytes, present }: JobFile): string {
  if (storage !== null)
    return `stored in ${storage}: ${path}${sizeBytes === null ? '' : `, ${formatBytes(sizeBytes)}`}`;
  const what = target === null ? role : `${role} of ${target}`;
  return `${what}: ${path}${present === false ? ' (not there)' : ''}`;
}
