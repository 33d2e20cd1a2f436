import { chmod, chown, copyFile, link, rename, rm, rmdir, stat } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { isErrno, messageOf } from '../../common/errors.ts';
import { fsyncDirectory, fsyncFile, makeDirectoryDurable, removeTree } from '../../common/files.ts';
import { addBitmap, createOverlay } from '../../common/qemuImage.ts';
import { copySecurityLabel } from '../../common/xattr.ts';
import { SnapshotError } from './errors.ts';
import { copyTpmState } from './extras.ts';
import type { PlannedVolume, SavePlan } from './plan.ts';
import { retainDirectoryName, workDirectoryMode } from './workspace.ts';

/**
 * Makes everything that the pause needs, while the machine runs: the image's second name and the empty
 * overlay, both durable. May be started again after a crash.
 * @throws SnapshotError CANNOT_CREATE_EMPTY_DISK_IMAGE
 */
export async function prepareWorkFiles(plan: SavePlan): Promise<void> {
  for (const directory of plan.workDirectories) await makeWorkDirectory(directory);
  for (const volume of plan.volumes) {
    await rm(volume.overlay, { force: true });
    try {
      if (!(await isSameFile(volume.file, volume.frozen))) await link(volume.file, volume.frozen);
      await createOverlay(
        volume.overlay,
        { path: volume.frozen, format: 'qcow2' },
        volume.virtualSizeBytes,
        volume.layout,
      );
      // Everything that the guest writes from T1 on goes into the overlay, and is noted from its first write on.
      if (plan.checkpoint !== null && volume.keepsBitmaps) await addBitmap(volume.overlay, plan.checkpoint);
      await copySecurityLabel(volume.file, volume.overlay);
      await takeOwnership(volume);
      await fsyncFile(volume.overlay);
    } catch (error) {
      throw new SnapshotError(
        'CANNOT_CREATE_EMPTY_DISK_IMAGE',
        `the overlay ${volume.overlay} cannot be made: ${messageOf(error)}`,
        {
          cause: error,
          hint: `nothing was changed; look at ${dirname(volume.overlay)}: df -h, df -i, ls -l`,
        },
      );
    }
  }
  for (const directory of plan.workDirectories) await fsyncDirectory(directory);
}

/** A crash, or an old umask, may have left a directory through which QEMU's user cannot get. */
export async function makeWorkDirectory(directory: string): Promise<void> {
  await makeDirectoryDurable(directory, workDirectoryMode);
  await chmod(directory, workDirectoryMode);
  if (basename(dirname(directory)) === retainDirectoryName)
    await chmod(dirname(directory), workDirectoryMode);
}

/** Gives the overlay the owner, group and mode of the image. */
async function takeOwnership(volume: PlannedVolume): Promise<void> {
  const { uid, gid, mode } = await stat(volume.file);
  await chown(volume.overlay, volume.owner?.uid ?? uid, volume.owner?.gid ?? gid);
  await chmod(volume.overlay, mode & 0o7777);
}

/** Gives the images of a machine that we have stopped their owners back, where libvirt has forgotten them. */
export async function giveBackOwners(plan: SavePlan): Promise<void> {
  for (const { file, owner } of plan.volumes) if (owner !== null) await chown(file, owner.uid, owner.gid);
}

/**
 * Puts each overlay in its image's place: one rename, the commit of this stage. The machine is saved; libvirt
 * has given the images their owners back, which the overlays take now. May be started again after a crash.
 * @throws SnapshotError CANNOT_RENAME_DISK_IMAGE
 */
export async function swapImages(plan: SavePlan): Promise<void> {
  try {
    if (plan.nvram !== null) await copyFile(plan.nvram.source, plan.nvram.file);
    await copyTpmState(plan);
    for (const volume of plan.volumes) {
      // Already swapped: the image's path is not the frozen image any more.
      if (!(await isSameFile(volume.file, volume.frozen))) continue;
      await takeOwnership(volume);
      await rename(volume.overlay, volume.file);
    }
    for (const directory of new Set(plan.volumes.map((volume) => dirname(volume.file))))
      await fsyncDirectory(directory);
  } catch (error) {
    throw new SnapshotError(
      'CANNOT_RENAME_DISK_IMAGE',
      `an overlay cannot take its image's place: ${messageOf(error)}`,
      { cause: error },
    );
  }
}

/** Undoes a swap: the frozen image takes its old place; the overlay, which must be empty, goes. */
export async function putImageBack(volume: PlannedVolume): Promise<void> {
  const temporary = `${volume.overlay}.back`;
  await rm(temporary, { force: true });
  await link(volume.frozen, temporary);
  await rename(temporary, volume.file);
  await fsyncDirectory(dirname(volume.file));
  await fsyncDirectory(volume.workDirectory);
}

/** Removes a job's directories with what is left in them, and ours above them when they are empty. */
export async function removeWorkDirectories(plan: {
  readonly workDirectories: readonly string[];
}): Promise<void> {
  for (const directory of plan.workDirectories) {
    await removeTree(directory, { root: dirname(directory) });
    // A directory that the administrator named stays, also when it is empty.
    if (basename(dirname(directory)) === retainDirectoryName) await removeIfEmpty(dirname(directory));
  }
}

async function removeIfEmpty(directory: string): Promise<void> {
  try {
    await rmdir(directory);
  } catch (error) {
    // Another job's directory is in it, or somebody else's file, or it was removed already.
    if (!isErrno(error, 'ENOTEMPTY') && !isErrno(error, 'EEXIST') && !isErrno(error, 'ENOENT')) throw error;
  }
}

/** True when both names lead to one file. */
export async function isSameFile(a: string, b: string): Promise<boolean> {
  const [first, second] = await Promise.all([inode(a), inode(b)]);
  return first !== undefined && second !== undefined && first.dev === second.dev && first.ino === second.ino;
}

/** When a file was last written, in milliseconds since 1970. */
export async function modificationTime(path: string): Promise<number> {
  return (await stat(path)).mtimeMs;
}

/** Inode of a file, as text: it tells our overlay from what somebody else has put in its place. */
export async function inodeOf(path: string): Promise<string> {
  return String((await stat(path, { bigint: true })).ino);
}

async function inode(path: string): Promise<{ readonly dev: bigint; readonly ino: bigint } | undefined> {
  try {
    return await stat(path, { bigint: true });
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return undefined;
    throw error;
  }
}
