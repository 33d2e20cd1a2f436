import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { isErrno, messageOf } from '../../common/errors.ts';
import { fsyncDirectory } from '../../common/files.ts';
import { dirname } from 'node:path';
import { RepositoryError } from './errors.ts';
import { formatKeyFile, newKeyFileKey, parseKeyFile, type Secret } from './keySlot.ts';

/** A key and what may come after it. */
const fileBytesMax = 1024;

/**
 * Reads a key file, which nobody but its owner (us, or root) may read.
 *
 * Rejects with KEY_WRONG, without anything of what stands in it.
 */
export async function readKeyFile(path: string, storage = 'NAME'): Promise<Secret> {
  try {
    // A pipe that nobody writes to must not hold us up.
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const { uid, mode, size, isFile } = await file.stat().then((status) => ({
      uid: status.uid,
      mode: status.mode,
      size: status.size,
      isFile: status.isFile(),
    }));
    if (!isFile || size > fileBytesMax) throw unusable(path, 'it is no file of one key', `ls -l ${path}`);
    if (uid !== 0 && uid !== process.geteuid?.())
      throw unusable(path, 'it belongs to somebody else', `chown root ${path}`);
    if ((mode & 0o077) !== 0) throw unusable(path, 'others may read it', `chmod 600 ${path}`);
    return { kind: 'keyFile', key: parseIn(path, await file.readFile('latin1')) };
  } catch (error) {
    if (error instanceof RepositoryError) throw error;
    throw unusable(
      path,
      isErrno(error, 'ENOENT') ? 'it is not there' : messageOf(error),
      `ls -l ${path}; of a new repository, stillpoint storage init ${storage} makes it; if it was lost, stillpoint storage keys ${storage} --recover makes it anew with the recovery key`,
    );
  }
}

/** A file that was cut short must not be filled with another key: its backups would still need the first one. */
function parseIn(path: string, text: string): Buffer {
  try {
    return parseKeyFile(text);
  } catch (error) {
    throw unusable(path, messageOf(error), `put a copy of it in its place: ls -l ${path}`);
  }
}

/** Makes a key file, on the disk when this resolves; `null` when there is one already. */
export async function makeKeyFile(path: string): Promise<Secret | null> {
  const key = newKeyFileKey();
  try {
    await using file = await open(path, 'wx', 0o600);
    await file.writeFile(formatKeyFile(key));
    await file.sync();
  } catch (error) {
    if (isErrno(error, 'EEXIST')) return null;
    throw unusable(path, messageOf(error), `mkdir -p -m 700 ${dirname(path)}`);
  }
  await fsyncDirectory(dirname(path));
  return { kind: 'keyFile', key };
}

function unusable(path: string, why: string, hint: string): RepositoryError {
  return new RepositoryError('KEY_WRONG', `the key file ${path} cannot be used: ${why}`, { hint });
}
