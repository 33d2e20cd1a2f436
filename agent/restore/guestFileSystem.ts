import { chmod, chown, mkdir, open, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { execa } from 'execa';
import { freeBytes } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { NbdVolume } from '../../nbd/volume.ts';
import { RestoreError } from './errors.ts';
import { type ExtPlace, ExtTree, readerUser } from './extTree.ts';
import { findFileSystems, type FoundFileSystem } from './fileSystems.ts';
import { endFuse, startFuse } from './fuse.ts';
import type { GuestTree } from './guestTree.ts';
import type { Look } from './looks.ts';

const answerMs = 60_000;
const overlayMs = 30_000;
/** What an overlay may take of the room beside the sockets, which is in memory, and libvirt's, too. */
const overlayShare = 1 / 4;
/** An overlay that has come so near to its limit has met it: clusters are taken in any order. */
const overlayNearBytes = 1024 * 1024;

/** A file system of a guest that can be read, and which it is. */
export interface OpenFileSystem extends AsyncDisposable {
  readonly tree: GuestTree;
  /** `vda`, or `vda partition 2`. */
  readonly name: string;
}

/** A file system on one of the volumes that are looked at. */
export interface LocatedFileSystem extends FoundFileSystem {
  readonly volume: Look['volumes'][number];
  readonly name: string;
}

/** Every file system, and what else was found, on the volumes that are looked at. */
export async function locateFileSystems(
  { volumes }: Look,
  signal: AbortSignal,
): Promise<readonly LocatedFileSystem[]> {
  const located: LocatedFileSystem[] = [];
  for (const volume of volumes) {
    const options = { socketPath: volume.socket, exportName: volume.target, answerMs, signal };
    await using source = await NbdVolume.open(options);
    for (const found of await findFileSystems(source)) {
      const name = found.partition === 0 ? volume.target : `${volume.target} partition ${found.partition}`;
      located.push({ ...found, volume, name });
    }
  }
  return located;
}

/**
 * Those that can be read.
 * @throws RestoreError FILE_SYSTEM_UNSUPPORTED, with what was found, when there is none
 */
export function requireReadable(located: readonly LocatedFileSystem[]): readonly LocatedFileSystem[] {
  const readable = located.filter(({ kind }) => kind === 'ext');
  if (readable.length > 0) return readable;
  const found = located.map(({ name, kind }) => `${name}: ${kind}`).join(', ');
  throw new RestoreError(
    'FILE_SYSTEM_UNSUPPORTED',
    `files can be taken out of ext2, ext3 and ext4 only, on a volume or a partition of it; found: ${found || 'nothing'}`,
    {
      hint: 'stillpoint storage mount BACKUP DIR gives the volumes as raw files: guestfish --ro --format=raw -a DIR/vda.raw -i reads many more',
    },
  );
}

/**
 * Opens a file system of a look. What is written to put it in order goes into an overlay, which goes with it.
 * @param directory of the look
 * @throws RestoreError MOUNT_FAILED, FILE_SYSTEM_UNSUPPORTED, NOT_ENOUGH_DISK_SPACE
 */
export async function openFileSystem(
  { volume, name, partition, offsetBytes, lengthBytes }: LocatedFileSystem,
  directory: string,
  signal: AbortSignal,
): Promise<OpenFileSystem> {
  // Of all processes of nobody, only those that are started inside get at the file.
  const closed = join(directory, `${volume.target}-${partition}`);
  const inside = join(closed, 'inside');
  const [file, overlay, pidFile] = [
    join(inside, 'volume'),
    join(closed, 'overlay.qcow2'),
    join(closed, 'pid'),
  ];
  const close = async (): Promise<void> => {
    await endFuse([], closed);
    await rm(closed, { recursive: true, force: true });
  };
  try {
    await mkdir(closed, { mode: 0o700 });
    await mkdir(inside);
    await chmod(inside, 0o711);
    await (await open(file, 'wx', 0o600)).close();
    await execa('qemu-img', ['create', '-q', '-f', 'qcow2', overlay, String(volume.virtualSizeBytes)], {
      timeout: overlayMs,
      stdin: 'ignore',
    });
    const overlayBytesMax = Math.floor((await freeBytes(closed)) * overlayShare);
    const scratch = { overlay, overlayBytesMax, offsetBytes, lengthBytes };
    await startFuse([{ path: file, socket: volume.socket, exportName: volume.target, scratch }], pidFile);
    if (process.geteuid?.() === 0) await chown(file, readerUser.uid, readerUser.gid);
    const tree = await openTree({ directory: inside, file: 'volume', signal }, overlay, overlayBytesMax);
    return { tree, name, [Symbol.asyncDispose]: close };
  } catch (error) {
    await close();
    throw error;
  }
}

/**
 * What the journal holds may need more than the overlay may take, whatever e2fsck makes of it.
 * @throws RestoreError NOT_ENOUGH_DISK_SPACE, FILE_SYSTEM_UNSUPPORTED
 */
export async function openTree(place: ExtPlace, overlay: string, overlayBytesMax: number): Promise<ExtTree> {
  const requireRoom = async (cause?: unknown): Promise<void> => {
    const { size } = await stat(overlay);
    if (size < overlayBytesMax - overlayNearBytes) return;
    throw new RestoreError(
      'NOT_ENOUGH_DISK_SPACE',
      `what the journal of the file system holds needs more than ${formatBytes(overlayBytesMax)} in ${dirname(overlay)}`,
      {
        cause,
        hint: `df -h ${dirname(overlay)}; a quarter of what is free there is used: make it larger, or set agent.socket to a directory that is`,
      },
    );
  };
  try {
    const tree = await ExtTree.open(place);
    await requireRoom();
    return tree;
  } catch (error) {
    if (error instanceof RestoreError && error.code === 'FILE_SYSTEM_UNSUPPORTED') await requireRoom(error);
    throw error;
  }
}
