import type { Manifest } from '../../storage/manifest.ts';
import { isTemplate } from '../../storage/template.ts';
import type { MachineSummary } from '../hypervisor/hypervisor.ts';
import { RestoreError } from './errors.ts';
import type { RestorePlan } from './plan.ts';

export interface RestoreRequest {
  /** The machine gets this name, and its own UUID, MACs, NVRAM and image paths. */
  readonly as?: string | undefined;
  /** Over the machine that was backed up. */
  readonly inPlace?: boolean | undefined;
  readonly start?: 'resume' | 'boot' | 'none' | undefined;
  /** Only these volumes, by target. */
  readonly volumes?: readonly string[] | undefined;
  /** Directory for the images; alone: only the files are restored there. */
  readonly to?: string | undefined;
  /** Paths of images, by target; before `to`. */
  readonly map?: Readonly<Record<string, string>> | undefined;
  /** Where network cards are connected, by the names of their networks or bridges at the time of the backup. */
  readonly networks?: Readonly<Record<string, string>> | undefined;
  /** The machine starts at once, on the backup itself, which is copied while it runs. */
  readonly instant?: boolean | undefined;
  /** What is replaced keeps a name when the restore has succeeded; true unless told. */
  readonly safetyCopy?: boolean | undefined;
}

/** What a request makes of a backup. @throws RestoreError RESTORE_TARGET_UNCLEAR */
export function kindOf(
  request: RestoreRequest,
  present: MachineSummary | undefined,
  manifest: Manifest,
): RestorePlan['kind'] {
  const { as, inPlace, to } = request;
  if (isTemplate(manifest)) return kindOfTemplate(request, manifest);
  const isElsewhere = to !== undefined || Object.keys(request.map ?? {}).length > 0;
  if (as !== undefined && inPlace)
    throw unclear('a restore is either in place or a new machine', 'give --in-place or --as NAME');
  if (as !== undefined) {
    if (request.volumes === undefined) return 'new-machine';
    throw unclear(
      'some of its volumes do not make a machine',
      'leave --volume out; or give --to DIR for the files',
    );
  }
  if (inPlace) {
    if (isElsewhere && present !== undefined)
      throw unclear(
        'a restore in place puts the images where they were',
        'leave --to and --map out, or give --as NAME',
      );
    if (request.volumes !== undefined && present === undefined)
      throw unclear(
        `there is no machine ${manifest.machine.name} to get these volumes`,
        'leave --volume out, or give --to DIR',
      );
    return 'in-place';
  }
  if (isElsewhere) {
    if (to !== undefined) return 'files';
    throw unclear('--map says where images go, but not of what', 'give --as NAME, --in-place or --to DIR');
  }
  if (present === undefined && request.volumes === undefined) return 'in-place';
  throw unclear(
    `${manifest.machine.name} ${present === undefined ? 'is not there' : 'exists: should it be replaced?'}`,
    `--in-place puts ${manifest.machine.name} back to ${manifest.pointInTime}; --as NAME makes a second machine; --to DIR restores only the files`,
  );
}

/** No machine comes of a template: its image goes back to where it was, or to where it is asked for. */
function kindOfTemplate(request: RestoreRequest, { machine }: Manifest): 'files' {
  const { as, instant, inPlace, start = 'none' } = request;
  const hint = 'give --to DIR for the image; without it, the image goes back to where it was';
  if (as !== undefined || instant === true)
    throw unclear(`${machine.name} is a template, of which no machine can be made`, hint);
  if (inPlace === true || start !== 'none')
    throw unclear(`${machine.name} is a template: there is no machine to replace or to start`, hint);
  return 'files';
}

/** Network cards are connected as a whole machine is defined. @throws RestoreError RESTORE_TARGET_UNCLEAR */
export function refuseIdleNetworks({ networks = {} }: RestoreRequest, isWhole: boolean): void {
  if (isWhole || Object.keys(networks).length === 0) return;
  throw unclear(
    '--network connects the cards of a whole machine, and this restore defines none',
    'leave --network out; or leave --volume out, and give --in-place or --as NAME',
  );
}

/** How the machine is afterwards. @throws RestoreError NO_MEMORY_STATE, RESTORE_TARGET_UNCLEAR */
export function startOf(
  request: RestoreRequest,
  kind: RestorePlan['kind'],
  manifest: Manifest,
  present: MachineSummary | undefined,
): RestorePlan['start'] {
  if (kind === 'files') {
    if ((request.start ?? 'none') === 'none') return 'none';
    throw unclear(
      `nothing can be started (--start ${request.start}) where only files are restored`,
      'leave --start out, or give --as NAME or --in-place for a machine',
    );
  }
  if (request.volumes !== undefined) {
    if (request.start === 'resume')
      throw new RestoreError('NO_MEMORY_STATE', 'a memory state fits all volumes of its instant, not some', {
        hint: '--start boot; or restore the whole machine',
      });
    return request.start ?? (present === undefined || isOff(present) ? 'none' : 'boot');
  }
  const start = request.start ?? (manifest.memory === undefined ? 'boot' : 'resume');
  if (start === 'resume' && manifest.memory === undefined) {
    throw new RestoreError('NO_MEMORY_STATE', 'the backup holds no memory state', { hint: '--start boot' });
  }
  return start;
}

/** The volumes of a backup that are asked for. @throws RestoreError VOLUME_UNKNOWN */
export function volumesOf(request: RestoreRequest, manifest: Manifest): Manifest['volumes'] {
  const known = manifest.volumes.map(({ target }) => target);
  const named = [...(request.volumes ?? []), ...Object.keys(request.map ?? {})];
  const unknown = named.find((target) => !known.includes(target));
  if (unknown !== undefined)
    throw new RestoreError('VOLUME_UNKNOWN', `the backup has no volume ${unknown}`, {
      hint: `it has: ${known.join(', ')}`,
    });
  const { volumes } = request;
  if (volumes === undefined) return manifest.volumes;
  return manifest.volumes.filter(({ target }) => volumes.includes(target));
}

export function isOff({ status }: MachineSummary): boolean {
  return status.state === 'shut-off' || status.state === 'crashed';
}

function unclear(message: string, hint: string): RestoreError {
  return new RestoreError('RESTORE_TARGET_UNCLEAR', message, { hint });
}
