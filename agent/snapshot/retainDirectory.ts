import { access, constants, lstat, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { exists, sameFileSystem } from '../../common/files.ts';
import { SnapshotError } from './errors.ts';
import { retainDirectoryFor } from './workspace.ts';

/** The frozen image is a second name of the image, and the overlay is renamed: neither crosses a file system. */
export async function requireUsableRetainDirectory(
  what: string,
  file: string,
  configured: string | null,
): Promise<void> {
  const directory = retainDirectoryFor(file, configured);
  if (!(await sameFileSystem(directory, file))) {
    throw new SnapshotError(
      'RETAIN_DIRECTORY_ELSEWHERE',
      `${what}: ${directory} is not on the file system of ${file}`,
      {
        hint: 'leave retainDirectory unset, or choose one on the same file system as the images',
      },
    );
  }
  await requireOwnDirectory(directory);
  if (configured !== null) await requireTraversable(what, configured, file);
  for (const path of [join(file, '..'), directory]) {
    try {
      await access(path, constants.W_OK | constants.X_OK);
      // access(2) lets root pass a directory on a read-only file system only where it says EROFS: it does.
    } catch (error) {
      if (path === directory && isErrno(error, 'ENOENT')) continue;
      throw new SnapshotError('RETAIN_DIRECTORY_READ_ONLY', `${what}: ${path} cannot be written`, {
        hint: 'the image is replaced by renaming, in its own directory: mount it read-write for this agent',
        cause: error,
      });
    }
  }
}

/**
 * Memory states and frozen images pass through a directory: nobody but root may be able to change what is in it,
 * or to have put it there.
 */
export async function requireOwnDirectory(path: string): Promise<void> {
  if (!(await exists(path))) return;
  const found = await lstat(path);
  if (found.isDirectory() && found.uid === 0 && (found.mode & 0o022) === 0) return;
  throw new SnapshotError(
    'WORK_DIRECTORY_UNSAFE',
    `${path} is not a directory of root that only root can change`,
    {
      hint: `ls -ld ${path}; move it away, or: chown root: ${path} && chmod go-w ${path}`,
    },
  );
}

/**
 * The running machine's image belongs to QEMU's user; every directory on the way to the frozen image must let
 * that user through, or the machine could not come back.
 */
async function requireTraversable(what: string, directory: string, image: string): Promise<void> {
  const { uid, gid } = await stat(image);
  for (let path = directory; path !== '/'; path = dirname(path)) {
    if (uid === 0 || !(await exists(path))) continue;
    const { mode, uid: owner, gid: group } = await stat(path);
    const bit = owner === uid ? 0o100 : group === gid ? 0o010 : 0o001;
    if ((mode & bit) !== 0) continue;
    throw new SnapshotError(
      'RETAIN_DIRECTORY_CLOSED',
      `${what}: QEMU's user (${uid}) cannot get through ${path}`,
      {
        hint: `chmod o+x ${path}, or leave retainDirectory unset`,
      },
    );
  }
}
