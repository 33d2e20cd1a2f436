import { mkdir, open, readdir, readFile, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import { isErrno } from '../../common/errors.ts';
import { canonicalPath, exists, writeFileDurable } from '../../common/files.ts';
import { newId } from '../../common/ids.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { isOwnerAlive, isSameOwner, thisOwner } from '../jobs/owner.ts';
import { RestoreError } from './errors.ts';
import { endFuse, mountPoints, startFuse } from './fuse.ts';
import { endGuestfs } from './guestfish.ts';
import { signalProcess } from './processes.ts';
import { endServer, ensureServed } from './served.ts';
import { planServedVolumes, type ServedVolume } from './servedVolumes.ts';

/*
 * Volumes of a backup that somebody looks at: served over NBD and, where they are to be files, mounted from there.
 * Before anything of it is there a record is, which names it all and the process that answers for it; whoever finds
 * the record of a dead one can take everything away.
 */

const recordName = 'look.json';
/** How long the process of a mount has to take it down, when it is asked to. */
const askedMs = 30_000;
const pollMs = 50;

const lookSchema = z.strictObject({
  id: z.uuid(),
  backup: z.strictObject({
    id: z.string(),
    storage: z.string(),
    machine: z.string(),
    pointInTime: z.string(),
  }),
  owner: z.strictObject({ pid: z.number().int(), startTicks: z.number().int(), bootId: z.string() }),
  /** Where the files are; `null` where the volumes are served and not mounted. */
  directory: z.string().startsWith('/').nullable(),
  /** The directory was made for it, and goes with it. */
  directoryMade: z.boolean(),
  volumes: z.array(
    z.strictObject({
      target: z.string(),
      socket: z.string().startsWith('/'),
      virtualSizeBytes: z.number().int().nonnegative(),
      /** The raw file; `null` where it is not mounted. */
      file: z.string().startsWith('/').nullable(),
    }),
  ),
});

/** Somebody's look into a backup. */
export type Look = z.infer<typeof lookSchema>;

export interface LookRequest {
  readonly entry: BackupEntry;
  /** Which volumes; all unless told. */
  readonly volumes?: readonly string[] | undefined;
  /** Where the files go; `null`: the volumes are only served. */
  readonly directory: string | null;
  /** File of the configuration; `null` for a backup whose artifacts are files. */
  readonly config: string | null;
}

/** All looks into backups on this host. */
export class Looks {
  readonly #place: string;

  /** @param runDirectory where sockets are; it is empty after a boot */
  constructor(runDirectory: string) {
    this.#place = join(runDirectory, 'looks');
  }

  /**
   * Those that are, with those whose process has died. What was begun and not written down has nothing.
   * @throws RestoreError MOUNT_FAILED for a record that is none
   */
  async list(): Promise<readonly Look[]> {
    const looks: Look[] = [];
    for (const name of await namesIn(this.#place)) {
      const look = await readRecord(join(this.#place, name));
      if (look !== null) looks.push(look);
    }
    return looks;
  }

  /** Those whose process has died. */
  async abandoned(): Promise<readonly Look[]> {
    return (await this.list()).filter(({ owner }) => !isOwnerAlive(owner));
  }

  /** Where files of a look can be put that go with it. */
  directoryOf({ id }: Look): string {
    return join(this.#place, id);
  }

  /**
   * Serves volumes of a backup, read-only, and mounts them as raw files `DIR/TARGET.raw` if a directory is given,
   * which must be empty. If that fails nothing is left.
   * @throws RestoreError VOLUME_UNKNOWN, VOLUME_ENCRYPTED, BACKUP_DAMAGED, PATH_TAKEN, CANNOT_SERVE, MOUNT_FAILED
   */
  async begin({ entry, volumes: targets, config, directory }: LookRequest): Promise<Look> {
    const id = newId();
    const planned = await planServedVolumes(entry, targets, { sockets: join(this.#place, id), config });
    const place = directory === null ? null : await canonicalPath(directory);
    const look = await this.#writeDown(id, entry, planned, place);
    try {
      for (const volume of planned) await ensureServed(volume, rootUser);
      if (place !== null) await this.#mount(look);
      return look;
    } catch (error) {
      await this.end(look);
      throw error;
    }
  }

  /** Keeps a backup from being deleted on this host, until the look ends or its process does. */
  hold(entry: BackupEntry): Promise<Look> {
    return this.#writeDown(newId(), entry, [], null);
  }

  async #writeDown(
    id: string,
    { storage, machine, pointInTime, manifest }: BackupEntry,
    planned: readonly ServedVolume[],
    directory: string | null,
  ): Promise<Look> {
    const volumes = planned.map(({ target, socket, virtualSizeBytes }) => {
      const file = directory === null ? null : join(directory, `${target}.raw`);
      return { target, socket, virtualSizeBytes, file };
    });
    const directoryMade = directory !== null && !(await exists(directory));
    if (directoryMade && !(await exists(dirname(directory))))
      throw new RestoreError('MOUNT_FAILED', `there is no directory ${dirname(directory)}`, {
        hint: `is ${directory} what was meant? then: mkdir -p ${dirname(directory)}`,
      });
    if (directory !== null && !directoryMade) await requireEmpty(directory, volumes);
    const look: Look = {
      id,
      backup: { id: manifest?.id ?? '', storage, machine: machine.name, pointInTime },
      owner: thisOwner(),
      directory,
      directoryMade,
      volumes,
    };
    await mkdir(this.directoryOf(look), { recursive: true, mode: 0o711 });
    await writeFileDurable(join(this.directoryOf(look), recordName), JSON.stringify(look));
    return look;
  }

  async #mount(look: Look): Promise<void> {
    if (look.directory !== null) await makeMountDirectory(look.directory);
    const files = look.volumes.flatMap(({ target, socket, file }) =>
      file === null ? [] : { path: file, socket, exportName: target },
    );
    for (const { path } of files) await makeMountPoint(path);
    await startFuse(files, join(this.directoryOf(look), 'fuse.pid'));
  }

  /**
   * Asks the process of a look to end it, and does it where that is dead or does not.
   * @throws RestoreError MOUNT_BUSY
   */
  async stop(look: Look): Promise<void> {
    const { owner } = look;
    const deadline = performance.now() + askedMs;
    if (isOwnerAlive(owner) && !isSameOwner(owner, thisOwner())) {
      signalProcess(owner.pid, 'SIGTERM');
      while (isOwnerAlive(owner) && performance.now() < deadline) await sleep(pollMs);
    }
    if (await exists(join(this.directoryOf(look), recordName))) await this.end(look);
  }

  /**
   * Takes a look away with all that belongs to it. Repeating it after a crash finishes the work.
   * @throws RestoreError MOUNT_BUSY; then the record stays
   */
  async end(look: Look): Promise<void> {
    const files = look.volumes.flatMap(({ file }) => file ?? []);
    await endGuestfs(this.directoryOf(look));
    await endFuse(files, this.directoryOf(look));
    for (const { socket } of look.volumes) await endServer(socket);
    for (const file of files) await removeMountPoint(file);
    if (look.directory !== null && look.directoryMade) await removeIfEmpty(look.directory);
    await rm(this.directoryOf(look), { recursive: true, force: true });
  }

  /**
   * The look that is mounted at a directory.
   * @throws RestoreError MOUNT_NOT_FOUND
   */
  async at(directory: string): Promise<Look> {
    const looks = await this.list();
    const place = await canonicalPath(directory);
    const look = looks.find((one) => one.directory === place);
    if (look !== undefined) return look;
    const places = looks.flatMap((one) => one.directory ?? []);
    throw new RestoreError('MOUNT_NOT_FOUND', `no backup is mounted at ${directory}`, {
      hint: places.length === 0 ? 'none is mounted anywhere' : `mounted: ${places.join(', ')}`,
    });
  }
}

const rootUser = { uid: 0, gid: 0 };

async function readRecord(directory: string): Promise<Look | null> {
  let text: string;
  try {
    text = await readFile(join(directory, recordName), 'utf8');
  } catch (error) {
    // It ends while we look.
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
  try {
    return lookSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new RestoreError('MOUNT_FAILED', `${join(directory, recordName)} is no record of this version`, {
      cause: error,
      hint: `see what it names: cat ${join(directory, recordName)}; umount that; then: rm -r ${directory}`,
    });
  }
}

/** Only mount points that a look of before a boot has left may be there. @throws RestoreError PATH_TAKEN */
async function requireEmpty(directory: string, volumes: Look['volumes']): Promise<void> {
  const ours = new Set(volumes.flatMap(({ file }) => file ?? []));
  const mounted = await mountPoints();
  const names = (await stat(directory)).isDirectory() ? await readdir(directory) : ['.'];
  for (const name of names) {
    const path = join(directory, name);
    if (ours.has(path) && !mounted.includes(path) && (await isEmptyFile(path))) continue;
    throw new RestoreError('PATH_TAKEN', `${path} is in the way`, {
      hint: 'choose an empty directory, or one that is not there',
    });
  }
}

/** Not those above it: they would stay. */
async function makeMountDirectory(path: string): Promise<void> {
  if (!(await exists(path))) await mkdir(path, { mode: 0o700 });
}

async function makeMountPoint(path: string): Promise<void> {
  if (await exists(path)) return;
  const file = await open(path, 'wx', 0o400);
  await file.close();
}

async function isEmptyFile(path: string): Promise<boolean> {
  const found = await stat(path);
  return found.isFile() && found.size === 0;
}

/** What is not ours any more stays. */
async function removeMountPoint(path: string): Promise<void> {
  if ((await exists(path)) && (await isEmptyFile(path))) await rm(path);
}

async function removeIfEmpty(directory: string): Promise<void> {
  try {
    await rmdir(directory);
  } catch (error) {
    if (!isErrno(error, 'ENOTEMPTY') && !isErrno(error, 'ENOENT')) throw error;
  }
}

async function namesIn(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}
