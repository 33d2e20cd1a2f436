import { chown, open, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { execa } from 'execa';
import { freeBytes } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { RestoreError } from './errors.ts';
import { readerUser } from './extTree.ts';
import { startFuse } from './fuse.ts';
import type { Look } from './looks.ts';

const overlayMs = 30_000;
/** What overlays may take of the room beside the sockets, which is in memory, and libvirt's, too. */
const overlayShare = 1 / 4;
/** An overlay that has come so near to its limit has met it: clusters are taken in any order. */
const overlayNearBytes = 1024 * 1024;

/** A stretch of a volume, as a file that who reads guests may write to. */
export interface ScratchFile {
  readonly volume: Look['volumes'][number];
  /** Where it appears. */
  readonly path: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** The overlay that takes what is written to a file. */
export interface ScratchOverlay {
  readonly path: string;
  readonly bytesMax: number;
}

/**
 * Serves stretches of volumes that are looked at as files of who reads guests. What is written there goes into an
 * overlay of each, which is bounded; the backup never gets it.
 * @param places.directory of overlays and server, which is ours alone; `endFuse` of it, or of one above, ends it all
 * @param places.group of the files; nobody's unless told
 * @throws RestoreError MOUNT_FAILED
 */
export async function serveScratch({
  directory,
  files,
  group = readerUser.gid,
}: {
  readonly directory: string;
  readonly files: readonly ScratchFile[];
  readonly group?: number;
}): Promise<readonly ScratchOverlay[]> {
  const overlays: string[] = [];
  for (const [index, { path, volume }] of files.entries()) {
    await (await open(path, 'wx', 0o600)).close();
    const overlay = join(directory, index === 0 ? 'overlay.qcow2' : `overlay${index}.qcow2`);
    await execa('qemu-img', ['create', '-q', '-f', 'qcow2', overlay, String(volume.virtualSizeBytes)], {
      timeout: overlayMs,
      stdin: 'ignore',
    });
    overlays.push(overlay);
  }
  const bytesMax = Math.floor(((await freeBytes(directory)) * overlayShare) / Math.max(1, files.length));
  const served = files.map(({ volume, path, offsetBytes, lengthBytes }, index) => {
    const scratch = { overlay: overlays[index] ?? '', overlayBytesMax: bytesMax, offsetBytes, lengthBytes };
    return { path, socket: volume.socket, exportName: volume.target, scratch };
  });
  await startFuse(served, join(directory, 'pid'));
  if (process.geteuid?.() === 0) for (const { path } of files) await chown(path, readerUser.uid, group);
  return overlays.map((path) => ({ path, bytesMax }));
}

/**
 * What the journal of a file system holds may need more than an overlay may take, whatever its reader makes of it.
 * @throws RestoreError NOT_ENOUGH_DISK_SPACE
 */
export async function requireOverlayRoom({ path, bytesMax }: ScratchOverlay, cause?: unknown): Promise<void> {
  const { size } = await stat(path);
  if (size < bytesMax - overlayNearBytes) return;
  const directory = dirname(path);
  throw new RestoreError(
    'NOT_ENOUGH_DISK_SPACE',
    `what the journal of the file system holds needs more than ${formatBytes(bytesMax)} in ${directory}`,
    {
      cause,
      hint: `df -h ${directory}; a quarter of what is free there is used: make it larger, or set agent.socket to a directory that is`,
    },
  );
}
