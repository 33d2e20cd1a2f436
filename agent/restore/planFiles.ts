import { realpath, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { exists } from '../../common/files.ts';
import { formatPointInTime } from '../../common/time.ts';
import { rememberedOwner } from '../../common/xattr.ts';
import { type Manifest, nvramOf } from '../../storage/manifest.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import type { DomainXml } from '../hypervisor/domainXml.ts';
import { retainDirectoryName } from '../snapshot/workspace.ts';
import { RestoreError } from './errors.ts';
import { planServed, type ServingPlace } from './instantPlan.ts';
import type { RestoredVolume, RestorePlan } from './plan.ts';

/** What decides where the files of a restore go. */
export interface Naming {
  readonly kind: RestorePlan['kind'];
  readonly scope: RestorePlan['scope'];
  /** No machine was backed up. */
  readonly template: boolean;
  readonly name: string;
  readonly jobId: string;
  /** Directory for all images. */
  readonly to: string | undefined;
  /** Paths of single volumes, by target. */
  readonly map: Readonly<Record<string, string>>;
  /** Of an instant restore: where the artifacts are served. */
  readonly serving: ServingPlace | null;
  /** What is replaced keeps a name for good. */
  readonly safetyCopy: boolean;
}

/** Plans one volume. `definition`: the one that the machine will have. */
export async function planVolume(
  entry: BackupEntry,
  volume: Manifest['volumes'][number],
  naming: Naming,
  definition: DomainXml,
): Promise<RestoredVolume> {
  const asRaw = isOpenedAsRaw(volume, naming, definition);
  const image = imageOf(volume, naming, definition, asRaw ? 'raw' : volume.format);
  const existed = await exists(image);
  const file = existed ? await realpath(image) : image;
  if (existed && !(await stat(file)).isFile()) throw notAFile(volume, `${image} is not a file`);
  const pool = definition.volumes.find(({ target }) => target === volume.target)?.pool;
  const workDirectory = join(dirname(file), retainDirectoryName, naming.jobId);
  return {
    target: volume.target,
    format: volume.format,
    asRaw,
    artifact: {
      path: join(entry.directory, volume.file),
      sizeBytes: volume.storedBytes,
      sha256: volume.sha256,
    },
    encrypted: volume.encrypted === true,
    keepsPool:
      pool !== undefined && naming.kind === 'in-place' && naming.serving === null && image === volume.source,
    image,
    file,
    workDirectory,
    staged: join(workDirectory, `${volume.target}.staged`),
    kept: join(workDirectory, `${volume.target}.kept`),
    existed,
    served: naming.serving === null ? null : planServed(volume, naming.serving, definition),
    safetyCopy: existed && naming.safetyCopy ? safetyCopyOf(file) : null,
    owner: volume.owner,
    presentOwner: existed ? await rememberedOwner(file) : null,
  };
}

/** Where a machine opens the volume as raw, the qcow2 artifact is written anew as that. */
function isOpenedAsRaw(
  volume: Manifest['volumes'][number],
  { kind, scope, template }: Naming,
  definition: DomainXml,
): boolean {
  if (kind === 'files' && !template) return false;
  const opened = definition.volumes.find(({ target }) => target === volume.target)?.format ?? volume.format;
  if (scope === 'volumes' && opened !== volume.format && opened !== 'raw') {
    throw new RestoreError(
      'DEFINITION_UNUSABLE',
      `the machine opens ${volume.target} as ${opened}, the backup holds it as ${volume.format}`,
      { hint: `restore the file alone: --volume ${volume.target} --to DIR` },
    );
  }
  return volume.format === 'qcow2' && opened === 'raw';
}

function imageOf(
  volume: Manifest['volumes'][number],
  { kind, scope, template, name, to, map }: Naming,
  definition: DomainXml,
  format: string,
): string {
  const { target, source } = volume;
  const mapped = map[target];
  if (mapped !== undefined) return mapped;
  if (template) return to === undefined ? source : join(to, basename(source));
  if (scope === 'volumes' && kind === 'in-place') return presentImage(target, name, definition);
  if (volume.kind !== undefined) {
    if (to !== undefined) return join(to, `${name}-${target}.${format}`);
    throw notAFile(volume, `it was ${source}, and only files are put in place`);
  }
  if (kind === 'in-place') return to === undefined ? source : join(to, basename(source));
  return join(to ?? dirname(source), `${name}-${target}.${format}`);
}

function notAFile({ target, file, kind }: Manifest['volumes'][number], why: string): RestoreError {
  const onto =
    kind === 'network'
      ? `where it belongs by hand: qemu-img convert -n -O raw ${file} TARGET`
      : `onto a device: --volume ${target} --to-device DEVICE`;
  return new RestoreError('VOLUME_NOT_A_FILE', `${target} cannot be restored there: ${why}`, {
    hint: `--as NAME with --map ${target}=/path/of/a/file (or with --to DIR) makes a file of it, --to DIR alone only restores files; ${onto}`,
  });
}

/** Where the machine has a volume now, which may be another place than at the time of the backup. */
function presentImage(target: string, name: string, definition: DomainXml): string {
  const volume = definition.volumes.find((candidate) => candidate.target === target);
  if (volume?.sourceKind === 'file' && volume.path !== undefined) return volume.path;
  throw new RestoreError(
    'VOLUME_UNKNOWN',
    `${name} has no volume ${target} that is a file: ${volume === undefined ? 'it is not there' : volume.sourceKind}`,
    { hint: `restore the file with --volume ${target} --to DIR, and attach it: virsh attach-disk` },
  );
}

/** A name beside a file that is replaced, with the moment of the plan. */
export function safetyCopyOf(file: string): string {
  return `${file}.replaced-${formatPointInTime(new Date())}`;
}

export function planMemory(
  entry: BackupEntry,
  manifest: Manifest,
  first: RestoredVolume,
  { kind, to, map, serving }: Naming,
  reconnected: boolean,
): RestorePlan['memory'] {
  const { memory } = manifest;
  if (memory === undefined) return null;
  const staged =
    kind === 'files'
      ? join(to ?? '', `${manifest.machine.name}.state`)
      : join(first.workDirectory, 'memory.state');
  return {
    artifact: {
      path: join(entry.directory, memory.file),
      sizeBytes: memory.sizeBytes,
      sha256: memory.sha256,
    },
    staged,
    adapted:
      kind === 'new-machine' ||
      serving !== null ||
      reconnected ||
      (kind === 'in-place' && (to !== undefined || Object.keys(map).length > 0)),
  };
}

export async function planNvram(
  entry: BackupEntry,
  manifest: Manifest,
  naming: Naming,
): Promise<RestorePlan['nvram']> {
  const nvram = nvramOf(manifest);
  if (nvram === undefined || naming.scope === 'volumes') return null;
  const fileName = naming.kind === 'in-place' ? basename(nvram.source) : `${naming.name}_VARS.fd`;
  const directory = naming.kind === 'files' ? (naming.to ?? '') : dirname(nvram.source);
  const path = join(directory, fileName);
  const work = join(directory, retainDirectoryName, naming.jobId);
  const existed = await exists(path);
  return {
    artifact: { path: join(entry.directory, nvram.file), sizeBytes: nvram.sizeBytes, sha256: nvram.sha256 },
    path,
    staged: join(work, 'nvram.staged'),
    kept: join(work, 'nvram.kept'),
    existed,
    safetyCopy: existed && naming.safetyCopy ? safetyCopyOf(path) : null,
  };
}
