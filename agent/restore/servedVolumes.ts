import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { readQcow2Header } from '../../storage/directory/qcow2Header.ts';
import type { ManifestVolume } from '../../storage/manifest.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { RestoreError } from './errors.ts';
import type { ServedArtifact } from './served.ts';

/** `sockaddr_un.sun_path` holds so many, with the NUL. */
const socketPathBytesMax = 107;

/** A volume of a backup, as it is served to who only looks at it. */
export interface ServedVolume extends ServedArtifact {
  readonly virtualSizeBytes: number;
}

/** Where volumes are served, and how a server finds them. */
export interface LookPlace {
  /** Directory of the sockets. */
  readonly sockets: string;
  /** File of the configuration; `null` where artifacts are files, which a server reads by their paths. */
  readonly config: string | null;
}

/**
 * The volumes of a backup, to be served with `ensureServed`. What was stored is opened by `qemu-nbd`, which would
 * follow whatever its header names: it must stand alone.
 * @param targets which of them; all unless told
 * @throws RestoreError VOLUME_UNKNOWN, VOLUME_ENCRYPTED, BACKUP_DAMAGED
 */
export async function planServedVolumes(
  entry: BackupEntry,
  targets: readonly string[] | undefined,
  place: LookPlace,
): Promise<readonly ServedVolume[]> {
  const { manifest } = entry;
  if (manifest === null || entry.state !== 'Active')
    throw new RestoreError(
      'BACKUP_DAMAGED',
      `this backup cannot be read: ${entry.problem ?? 'no manifest'}`,
      {
        hint: 'stillpoint list',
      },
    );
  const known = manifest.volumes.map(({ target }) => target);
  for (const target of targets ?? [])
    if (!known.includes(target))
      throw new RestoreError('VOLUME_UNKNOWN', `the backup has no volume ${target}`, {
        hint: `it has ${known.join(', ')}`,
      });
  const chosen = manifest.volumes.filter(({ target }) => targets?.includes(target) ?? true);
  return Promise.all(chosen.map((volume) => planServedVolume(entry, manifest.id, volume, place)));
}

async function planServedVolume(
  { directory, storage }: BackupEntry,
  backupId: string,
  volume: ManifestVolume,
  { sockets, config }: LookPlace,
): Promise<ServedVolume> {
  const { target, file, format, virtualSizeBytes, sha256: root } = volume;
  if (volume.encrypted)
    throw new RestoreError('VOLUME_ENCRYPTED', `${target} is encrypted: only who has its key can read it`, {
      hint: 'choose others with --volume, or restore the image: stillpoint restore BACKUP --to DIR',
    });
  const socket = join(sockets, target);
  if (Buffer.byteLength(socket) > socketPathBytesMax)
    throw new RestoreError('CANNOT_SERVE', `the path of a socket is too long: ${socket}`, {
      hint: 'set agent.socket to a shorter path',
    });
  const artifact = join(directory, file);
  if (config === null) await requireAlone(artifact, backupId, volume);
  const repository = config === null ? null : { config, storage, root };
  return { target, artifact, format, socket, virtualSizeBytes, repository };
}

/** @throws RestoreError BACKUP_DAMAGED */
async function requireAlone(
  path: string,
  backupId: string,
  { format, storedBytes }: ManifestVolume,
): Promise<void> {
  const { size } = await stat(path);
  const header = format === 'qcow2' ? await readQcow2Header(path) : undefined;
  const standsAlone =
    header !== null && !(header?.hasBackingFile ?? false) && !(header?.hasDataFile ?? false);
  if (size === storedBytes && standsAlone && !(header?.isCorrupt ?? false)) return;
  throw new RestoreError('BACKUP_DAMAGED', `${path} is not what was stored`, {
    hint: `stillpoint verify --data ${backupId}`,
  });
}
