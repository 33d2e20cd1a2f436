import { chmod, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { NbdVolume } from '../../nbd/volume.ts';
import { RestoreError } from './errors.ts';
import { type ExtPlace, ExtTree } from './extTree.ts';
import { findFileSystems, type FoundFileSystem } from './fileSystems.ts';
import { endFuse } from './fuse.ts';
import type { GuestTree } from './guestTree.ts';
import type { Look } from './looks.ts';
import { requireOverlayRoom, type ScratchOverlay, serveScratch } from './scratch.ts';

const answerMs = 60_000;

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
  const file = join(inside, 'volume');
  const close = async (): Promise<void> => {
    await endFuse([], closed);
    await rm(closed, { recursive: true, force: true });
  };
  try {
    await mkdir(closed, { mode: 0o700 });
    await mkdir(inside);
    await chmod(inside, 0o711);
    const served = [{ volume, path: file, offsetBytes, lengthBytes }];
    const [overlay] = await serveScratch({ directory: closed, files: served });
    if (overlay === undefined) throw new Error('a file has no overlay');
    const tree = await openTree({ directory: inside, file: 'volume', signal }, overlay);
    return { tree, name, [Symbol.asyncDispose]: close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function openTree(place: ExtPlace, overlay: ScratchOverlay): Promise<ExtTree> {
  try {
    const tree = await ExtTree.open(place);
    await requireOverlayRoom(overlay);
    return tree;
  } catch (error) {
    if (error instanceof RestoreError && error.code === 'FILE_SYSTEM_UNSUPPORTED')
      await requireOverlayRoom(overlay, error);
    throw error;
  }
}
