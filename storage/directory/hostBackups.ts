import { mkdir, readFile, rename, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { createHash } from 'node:crypto';
import { isErrno, messageOf } from '../../common/errors.ts';
import {
  exists,
  fsyncDirectory,
  makeDirectoryDurable,
  removeTree,
  writeFileDurable,
} from '../../common/files.ts';
import { formatPointInTime, parsePointInTime } from '../../common/time.ts';
import { StorageError } from '../errors.ts';
import {
  formatHostManifest,
  hostManifestFileName,
  type HostManifest,
  parseHostManifest,
} from '../hostManifest.ts';
import type { HostBackupEntry } from '../storage.ts';
import { directoriesIn } from './entries.ts';
import {
  assertArtifactName,
  decodeMachineName,
  deletingDirectoryName,
  encodeMachineName,
  isDeletingDirectory,
  jobIdOfPartial,
  partialDirectoryName,
} from './names.ts';

/** Definitions are written within seconds: a partial directory that did not change for so long is nobody's. */
const livingMs = 3_600_000;

/** No machine's directory can have this name: `~` is encoded in those. */
const hostsDirectory = '~hosts';

/**
 * Writes the backup of a host: `<root>/~hosts/<host>/<T1>/`, whole or not at all.
 * @param files text of every file of the manifest, by file name
 * @throws StorageError BACKUP_EXISTS
 */
export async function addHostBackup(
  root: string,
  manifest: HostManifest,
  files: ReadonlyMap<string, string>,
): Promise<string> {
  const parent = join(root, hostsDirectory, encodeMachineName(manifest.host.name));
  await makeDirectoryDurable(parent, 0o700);
  const directory = join(parent, formatPointInTime(new Date(manifest.pointInTime)));
  if (await exists(directory))
    throw new StorageError('BACKUP_EXISTS', `${directory} is there already`, { retryable: true });
  await removeLeftovers(root, parent);
  const partial = join(parent, partialDirectoryName(manifest.id));
  await mkdir(partial, { mode: 0o700 });
  try {
    for (const { file } of manifest.items) {
      const text = files.get(file);
      if (text === undefined) throw new Error(`there is no text of ${file}`);
      await writeFileDurable(join(partial, file), text, { mode: 0o600 });
    }
    await writeFileDurable(join(partial, hostManifestFileName), formatHostManifest(manifest), {
      mode: 0o600,
    });
    await rename(partial, directory);
  } catch (error) {
    await removeTree(partial, { root });
    throw error;
  }
  await fsyncDirectory(parent);
  return directory;
}

/**
 * Removes the backup of a host, for good. Repeating it after a crash finishes the work.
 * @throws StorageError BACKUP_NOT_FOUND
 */
export async function deleteHostBackup(
  root: string,
  { directory }: Pick<HostBackupEntry, 'directory'>,
): Promise<void> {
  const parent = dirname(directory);
  const isOurs = dirname(dirname(parent)) === root && basename(dirname(parent)) === hostsDirectory;
  if (!isOurs || parsePointInTime(basename(directory)) === null || !(await exists(directory)))
    throw new StorageError('BACKUP_NOT_FOUND', `${directory} is no backup of a host`, {
      hint: 'stillpoint list --host',
    });
  const deleting = join(parent, deletingDirectoryName(basename(directory)));
  await removeTree(deleting, { root });
  await rename(directory, deleting);
  await fsyncDirectory(parent);
  await removeTree(deleting, { root });
}

/** What a writer that was killed has left, and deletions that a crash interrupted. */
async function removeLeftovers(root: string, parent: string): Promise<void> {
  for (const name of await directoriesIn(parent)) {
    const path = join(parent, name);
    const isPartial = jobIdOfPartial(name) !== null;
    if (isPartial && Date.now() - (await stat(path)).mtimeMs < livingMs) continue;
    if (isPartial || isDeletingDirectory(name)) await removeTree(path, { root });
  }
}

/** Every backup of a host, oldest first; each file of it is read and compared. */
export async function hostBackups(storage: string, root: string): Promise<readonly HostBackupEntry[]> {
  const found: HostBackupEntry[] = [];
  const hosts = join(root, hostsDirectory);
  for (const host of await directoriesIn(hosts)) {
    for (const time of await directoriesIn(join(hosts, host))) {
      const at = parsePointInTime(time);
      if (at === null) continue;
      const directory = join(hosts, host, time);
      const read = await readHostBackup(directory);
      const name = read.manifest?.host.name ?? decodeMachineName(host) ?? host;
      found.push({ storage, host: name, directory, pointInTime: at.toISOString(), ...read });
    }
  }
  return found.toSorted((a, b) => (a.pointInTime < b.pointInTime ? -1 : 1));
}

/** A file of the backup of a host. @throws StorageError BACKUP_NOT_FOUND */
export async function hostFile({ directory }: { readonly directory: string }, file: string): Promise<Buffer> {
  assertArtifactName(file);
  try {
    return await readFile(join(directory, file));
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
    throw new StorageError('BACKUP_NOT_FOUND', `${join(directory, file)} is not there any more`, {
      cause: error,
      hint: 'stillpoint list --host',
    });
  }
}

async function readHostBackup(
  directory: string,
): Promise<{ readonly manifest: HostManifest | null; readonly problem: string | null }> {
  try {
    const manifest = parseHostManifest(await readFile(join(directory, hostManifestFileName), 'utf8'));
    for (const { file, sha256 } of manifest.items) {
      const content = await readFile(join(directory, file));
      if (createHash('sha256').update(content).digest('hex') !== sha256)
        return { manifest, problem: `${file} was damaged or changed` };
    }
    return { manifest, problem: null };
  } catch (error) {
    return { manifest: null, problem: messageOf(error) };
  }
}
