import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { readQcow2Header } from '../../storage/directory/qcow2Header.ts';
import type { Manifest } from '../../storage/manifest.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { nbdUrl } from '../hypervisor/domainDisk.ts';
import type { DomainXml } from '../hypervisor/domainXml.ts';
import type { MergePlan, PlannedVolume } from '../snapshot/plan.ts';
import { RestoreError } from './errors.ts';
import type { RestoredVolume, RestorePlan } from './plan.ts';

/** `sockaddr_un.sun_path` holds so many, with the NUL. */
const socketPathBytesMax = 107;

/**
 * A machine can start on a backup when that is a machine's, and its volumes stand alone.
 * @param keepsFiles the storage has them as files
 * @throws RestoreError INSTANT_UNSUPPORTED
 */
export async function requireInstant(
  entry: BackupEntry,
  manifest: Manifest,
  { kind, scope, start }: Pick<RestorePlan, 'kind' | 'scope' | 'start'>,
  keepsFiles: boolean,
): Promise<void> {
  if (kind === 'files' || scope === 'volumes' || start === 'none')
    throw unsupported(
      '--instant starts a whole machine',
      'give --in-place or --as NAME, and leave the others out',
    );
  for (const { file, format, storedBytes, target, encrypted } of manifest.volumes) {
    if (encrypted)
      throw unsupported(
        `${target} is encrypted, and cannot be served without its key`,
        'restore without --instant',
      );
    if (!keepsFiles) continue;
    const path = join(entry.directory, file);
    const { size } = await stat(path);
    const header = format === 'qcow2' ? await readQcow2Header(path) : undefined;
    if (size !== storedBytes || header === null || header?.isCorrupt)
      throw new RestoreError('BACKUP_DAMAGED', `${path} is not what was stored`, {
        hint: `stillpoint verify --data ${manifest.id}`,
      });
    if (header?.hasBackingFile || header?.hasDataFile)
      throw unsupported(`${target} is stored as more than one file`, 'restore without --instant');
  }
}

/** Where the artifacts of a backup are served. */
export interface ServingPlace {
  /** Directory of the sockets. */
  readonly sockets: string;
  /** File of the configuration; `null` where artifacts are files, which a server reads by their paths. */
  readonly config: string | null;
  readonly storage: string;
}

/** Where a volume's artifact is served. @throws RestoreError INSTANT_UNSUPPORTED */
export function planServed(
  volume: Manifest['volumes'][number],
  { sockets, config, storage }: ServingPlace,
  definition: DomainXml,
): RestoredVolume['served'] {
  const opened = definition.volumes.find(({ target }) => target === volume.target);
  if (opened?.format !== 'qcow2')
    throw unsupported(
      `the machine opens ${volume.target} as ${opened?.format ?? 'raw'}; only a qcow2 image can stand on a backup`,
      'restore without --instant',
    );
  const socket = join(sockets, volume.target);
  if (Buffer.byteLength(socket) > socketPathBytesMax)
    throw unsupported(`the path of a socket is too long: ${socket}`, 'set agent.socket to a shorter path');
  return {
    socket,
    url: nbdUrl(volume.target, socket),
    virtualSizeBytes: volume.virtualSizeBytes,
    repository: config === null ? null : { config, storage, root: volume.sha256 },
    errorPolicies: { ...opened.errorPolicies },
  };
}

/** The artifacts that an instant restore serves. */
export function servedVolumes(
  plan: RestorePlan,
): readonly (RestoredVolume & { readonly served: NonNullable<RestoredVolume['served']> })[] {
  return plan.volumes.flatMap((volume) =>
    volume.served === null ? [] : [{ ...volume, served: volume.served }],
  );
}

/** The pull of the backup into the images, as a merge: the artifact is what a frozen image is to a backup. */
export function pullPlan(plan: RestorePlan): MergePlan {
  const volumes = servedVolumes(plan).map(
    ({ target, image, file, workDirectory, staged, artifact, served }): PlannedVolume => ({
      target,
      image,
      file,
      frozen: served.url,
      overlay: staged,
      workDirectory,
      base: null,
      chain: [image],
      virtualSizeBytes: served.virtualSizeBytes,
      layout: [],
      owner: null,
      allocatedBytes: artifact.sizeBytes,
      keepsBitmaps: false,
    }),
  );
  return { machine: plan.machine, volumes };
}

function unsupported(message: string, hint: string): RestoreError {
  return new RestoreError('INSTANT_UNSUPPORTED', message, { hint });
}
