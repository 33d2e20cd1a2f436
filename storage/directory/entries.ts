import { lstat, readdir, realpath } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { openRegular } from '../../common/copy.ts';
import { isErrno } from '../../common/errors.ts';
import { parsePointInTime } from '../../common/time.ts';
import { StorageError } from '../errors.ts';
import { artifactsOf, manifestFileName, maxManifestBytes, parseManifest } from '../manifest.ts';
import type { Artifact, Manifest } from '../manifest.ts';
import type { BackupEntry } from '../storage.ts';
import { decodeMachineName } from './names.ts';
import { readProtection } from './protection.ts';
import { readDataVerification } from './dataVerification.ts';
import { readVerification } from './verifications.ts';

/** The real path of a storage's root. Throws STORAGE_UNREACHABLE where there is no directory. */
export async function resolveRoot(root: string): Promise<string> {
  const hint = `is it mounted? If it is to be a new storage: mkdir -p -m 0700 ${root}`;
  try {
    const real = await realpath(root);
    if (!(await lstat(real)).isDirectory()) {
      throw new StorageError('STORAGE_UNREACHABLE', `${root} is not a directory`, { hint });
    }
    return real;
  } catch (error) {
    if (!isErrno(error, 'ENOENT') && !isErrno(error, 'ENOTDIR')) throw error;
    throw new StorageError('STORAGE_UNREACHABLE', `${root} is not there`, {
      hint,
      cause: error,
      retryable: true,
    });
  }
}

/** Names of the real directories in a directory (links are not directories); none in a missing one. */
export async function directoriesIn(path: string): Promise<readonly string[]> {
  try {
    const found = await readdir(path, { withFileTypes: true });
    return found.filter((item) => item.isDirectory()).map((item) => item.name);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}

/** Names of the machines' directories in a root. */
export async function machineDirectories(root: string): Promise<readonly string[]> {
  return (await directoriesIn(root)).filter((name) => decodeMachineName(name) !== null);
}

/** Names of the backups' directories in a machine's directory, oldest first. */
export async function backupDirectories(machineDirectory: string): Promise<readonly string[]> {
  return (await directoriesIn(machineDirectory)).filter((name) => parsePointInTime(name) !== null).toSorted();
}

/**
 * Reads the manifest of a backup's directory.
 *
 * @throws StorageError FILE_MISSING, MANIFEST_INVALID, MANIFEST_TOO_NEW, or the system's errors.
 */
export async function readManifest(directory: string): Promise<Manifest> {
  const path = join(directory, manifestFileName);
  const file = await openRegular(path).catch((error: unknown) => {
    if (isErrno(error, 'ENOENT'))
      throw new StorageError('FILE_MISSING', `${manifestFileName} is missing`, { cause: error });
    if (isErrno(error, 'ELOOP'))
      throw new StorageError('FOREIGN_CONTENT', `${manifestFileName} is a link`, { cause: error });
    throw error;
  });
  try {
    const { size } = await file.stat();
    if (size > maxManifestBytes) {
      throw new StorageError(
        'MANIFEST_INVALID',
        `${manifestFileName} has ${size} bytes; more than ${maxManifestBytes} are not read`,
      );
    }
    const buffer = Buffer.alloc(size);
    const { bytesRead } = await file.read(buffer, 0, size, 0);
    return parseManifest(buffer.toString('utf8', 0, bytesRead));
  } finally {
    await file.close();
  }
}

/**
 * What is wrong with the files that a manifest names, looking at presence and length only; `null`: nothing.
 * @param needed whether a file counts
 */
export async function problemOfFiles(
  directory: string,
  manifest: Manifest,
  needed: (artifact: Artifact) => boolean = () => true,
): Promise<string | null> {
  for (const { file, sizeBytes } of artifactsOf(manifest).filter(needed)) {
    const status = await lstatOrNull(join(directory, file));
    if (status === null) return `${file} is missing`;
    if (!status.isFile()) return `${file} is not a regular file`;
    if (sizeBytes !== null && status.size !== sizeBytes)
      return `${file} has ${status.size} bytes instead of ${sizeBytes}`;
  }
  return null;
}

/** `lstat`, with `null` for a name that is not there. */
export async function lstatOrNull(path: string): Promise<Awaited<ReturnType<typeof lstat>> | null> {
  try {
    return await lstat(path);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
}

/** Describes a backup's directory; damage of any kind is in the entry and never thrown. */
export async function readEntry(storage: string, directory: string): Promise<BackupEntry> {
  const time = parsePointInTime(basename(directory));
  if (time === null) throw new Error(`not the directory of a backup: ${directory}`);
  const pointInTime = time.toISOString();
  const nameOnDisk = decodeMachineName(basename(dirname(directory))) ?? basename(dirname(directory));
  let manifest: Manifest | null = null;
  let problem: string | null;
  try {
    manifest = await readManifest(directory);
    problem =
      new Date(manifest.pointInTime).getTime() === time.getTime()
        ? // The digests of chunks can be computed anew: without them it can be restored all the same.
          await problemOfFiles(directory, manifest, ({ kind }) => kind !== 'sums')
        : `the manifest is of another point in time, ${manifest.pointInTime}`;
  } catch (error) {
    problem = error instanceof Error ? error.message : String(error);
  }
  const protection = await readProtection(directory);
  return {
    storage,
    directory,
    id: manifest?.id ?? null,
    machine: manifest?.machine ?? { name: nameOnDisk, uuid: null },
    pointInTime,
    state: problem === null ? 'Active' : 'Killed',
    problem,
    protected: protection !== null,
    protectedReason: protection?.reason ?? null,
    verified: await readVerification(directory),
    dataVerified: await readDataVerification(directory),
    manifest,
  };
}

/** True when the directory holds a readable backup of a machine with another UUID. */
export async function belongsToAnother(machineDirectory: string, uuid: string): Promise<boolean> {
  for (const name of await backupDirectories(machineDirectory)) {
    const { machine } = await readEntry('', join(machineDirectory, name));
    if (machine.uuid !== null && machine.uuid !== uuid) return true;
  }
  return false;
}
