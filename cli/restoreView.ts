import type { JobRow, StepRow } from '../agent/jobs/job.ts';
import { plainFilesOf } from '../agent/restore/files.ts';
import { restoreFactsSchema, type RestorePlan, safetyCopiesOf } from '../agent/restore/plan.ts';
import { formatDuration } from '../common/time.ts';
import { formatBytes } from '../common/units.ts';
import { timeOf } from './jobView.ts';
import { styled, type Text } from './output.ts';

/** Where lines for people go. */
type Out = (...parts: readonly Text[]) => void;

/** What a restore has done. @param steps of its job */
export function printRestored(
  out: Out,
  plan: RestorePlan,
  job: Pick<JobRow, 'record'>,
  steps: readonly StepRow[],
): void {
  out(
    styled('green', 'restored '),
    styled('bold', plan.machine.name),
    ` as of ${plan.backup.pointInTime}: ${wasBooted(job) ? ends.boot : endOf(plan)}`,
  );
  const ran = plan.instant ? runningSince(steps) : null;
  if (ran !== null)
    out(
      `it runs since ${timeOf(ran.atMs)}, ${formatDuration(ran.afterMs)} after the restore began; all of it is copied now, and storage ${plan.backup.storage} is needed no more`,
    );
  printSafetyCopies(out, plan);
}

/** When the machine of an instant restore was started; null: another process has done it. */
function runningSince(steps: readonly StepRow[]): { readonly atMs: number; readonly afterMs: number } | null {
  const [first] = steps;
  const start = steps.find(({ name, status }) => name === 'start' && status === 'done');
  if (first === undefined || start?.durationMs == null) return null;
  const atMs = start.startedAtMs + start.durationMs;
  return { atMs, afterMs: atMs - first.startedAtMs };
}

const ends: Readonly<Record<RestorePlan['start'], string>> = {
  resume: 'it goes on from that instant',
  boot: 'it boots',
  none: 'it is off',
};

/** What a restore has replaced, and how to be rid of it. */
function printSafetyCopies(out: Out, plan: RestorePlan): void {
  const copies = safetyCopiesOf(plan);
  if (copies.length === 0) return;
  out('what it replaced is kept; when you need it no more: ', styled('bold', `rm ${copies.join(' ')}`));
}

/** The memory could not be resumed on this host, which a warning has told. */
function wasBooted(job: Pick<JobRow, 'record'>): boolean {
  return restoreFactsSchema.safeParse(job.record).data?.bootedInstead ?? false;
}

function endOf(plan: RestorePlan): string {
  if (plan.kind === 'files') {
    const images = plan.volumes.map(({ image }) => image);
    const extras = plan.extras.map(({ path }) => path);
    return `files in ${[...images, ...extras, ...plainFilesOf(plan).map(({ place }) => place)].join(', ')}`;
  }
  if (plan.start === 'resume' && !plan.runningAtPoint)
    return 'it stands at that instant, suspended as it was';
  return ends[plan.start];
}

function whatOf({ scope, volumes, present }: RestorePlan): string {
  if (scope === 'volumes') return `${volumes.map(({ target }) => target).join(', ')} of the machine`;
  return present === null ? 'as the machine' : 'over the machine';
}

/** What a restore is going to do, for who decides about it. */
export function printPlan(out: Out, plan: RestorePlan): void {
  const whats: Readonly<Record<RestorePlan['kind'], string>> = {
    'in-place': `${whatOf(plan)} ${plan.machine.name}`,
    'new-machine': `as the new machine ${plan.machine.name} (${plan.machine.uuid})`,
    files: 'files only, no machine',
  };
  out(styled('bold', 'Restore'), ` of backup ${plan.backup.id} from storage ${plan.backup.storage}`);
  out(`  to the instant ${plan.backup.pointInTime}, ${whats[plan.kind]}`);
  if (plan.kind !== 'files')
    out(`  afterwards: ${endOf(plan)}${plan.linksDown ? ', its network links down' : ''}`);
  if (plan.instant) {
    const { storage } = plan.backup;
    out(
      styled('yellow', '  at once: '),
      `the machine runs as soon as it is started, on the backup; until the command ends, which copies it meanwhile, storage ${storage} must stay reachable`,
    );
  }
  for (const volume of plan.volumes) {
    out(`  ${volume.target}: ${volume.image}, ${formatBytes(volume.artifact.sizeBytes)}`);
  }
  if (plan.nvram !== null) out(`  NVRAM: ${plan.nvram.path}`);
  // Also what goes elsewhere than the images: a manifest may come from anybody.
  for (const { path } of plan.extras) out(`  file: ${path}`);
  for (const { place, artifact } of plainFilesOf(plan))
    out(
      artifact === plan.definition
        ? `  definition: ${place}`
        : `  memory: ${place}, ${formatBytes(artifact.sizeBytes)}`,
    );
  if (plan.memory !== null && plan.kind !== 'files')
    out(`  memory: ${formatBytes(plan.memory.artifact.sizeBytes)}`);
  if (plan.macs.length > 0) out(`  MAC addresses: ${plan.macs.join(', ')}`);
  for (const { from, to } of plan.networks)
    out(
      `  network cards on ${from}: ${to.kind === 'none' ? 'connected to nothing' : `on ${to.kind} ${to.name}`}`,
    );
  for (const conflict of plan.conflicts) out(styled('yellow', `  ${conflict.kind}: `), conflict.message);
}
