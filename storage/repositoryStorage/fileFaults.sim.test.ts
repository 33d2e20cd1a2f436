import { createHash } from 'node:crypto';
import { cp, mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { StillpointError } from '../../common/errors.ts';
import { exists } from '../../common/files.ts';
import { newId } from '../../common/ids.ts';
import type { Extent } from '../../common/volumeSource.ts';
import { FaultyFiles, type FileFault, openBelow } from '../../test/sim/faultyFiles.ts';
import { FileBackend } from '../backends/fileBackend.ts';
import { DirectoryStorage } from '../directory/directoryStorage.ts';
import { collect } from '../repository/collectionFixture.ts';
import { Repository } from '../repository/repository.ts';
import { initTestRepository, testSecret, volumeSource } from '../repository/repositoryFixture.ts';
import { StorageError } from '../errors.ts';
import { noBounds } from '../space.ts';
import type { BackupEntry, Storage } from '../storage.ts';
import { machine, manifestOf } from './fixture.ts';
import { RepositoryStorage } from './repositoryStorage.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.setTimeout(1_200_000);
t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats its faults`);

/**
 * They take turns. A run takes every tenth call, which ones says the seed: `STILLPOINT_FAULT_EVERY=1` takes every call,
 * and with nine `STILLPOINT_FAULT_ROUNDS` each of them fails in each way. `storage/backends` does so always.
 */
const faults: readonly FileFault[] = [
  { errno: 'EIO', when: 'before' },
  { errno: 'ENOSPC', when: 'before' },
  { errno: 'EIO', when: 'after' },
  { errno: 'ENOSPC', when: 'half', afterwards: 'ENOSPC' },
  { errno: 'ESTALE', when: 'before' },
  { errno: 'EIO', when: 'half' },
  { errno: 'EROFS', when: 'before', afterwards: 'EROFS' },
  { errno: 'EINTR', when: 'before' },
  { errno: null, when: 'half' },
];
const rounds = Number(process.env['STILLPOINT_FAULT_ROUNDS'] ?? 1);
const every = Number(process.env['STILLPOINT_FAULT_EVERY'] ?? 10);

/** A kind of storage on a file system. */
interface Kind {
  readonly name: string;
  prepare(root: string): Promise<void>;
  open(root: string): Storage;
  /** What is below its root that does not belong to a backup. */
  strays(root: string): Promise<readonly string[]>;
  collect(root: string): Promise<void>;
}

const kinds: readonly Kind[] = [
  {
    name: 'a repository',
    prepare: async (root) => void (await initTestRepository(new FileBackend(root))),
    open: (root) =>
      new RepositoryStorage({
        name: 'vault',
        location: root,
        open: () => Repository.open(new FileBackend(root), testSecret),
        bounds: noBounds,
        room: () => Promise.resolve(null),
        removeLeftovers: async () => new FileBackend(root).removeLeftovers(new Date(Date.now() + 1000)),
      }),
    strays: async (root) => [
      ...(await readdir(join(root, 'tmp'))),
      ...(await namesBelow(join(root, 'sessions'))),
    ],
    collect: async (root) =>
      void (await collect(await Repository.open(new FileBackend(root), testSecret), { repackBelow: 0.9 })),
  },
  {
    name: 'a directory',
    prepare: () => Promise.resolve(),
    open: (root) => new DirectoryStorage({ name: 'local', path: root }),
    strays: async (root) =>
      (await readdir(root, { recursive: true })).filter((name) =>
        /partial|deleting|tmp$|\.copying/.test(name),
      ),
    collect: () => Promise.resolve(),
  },
];

/** Bytes that do not compress, the same each time. */
function noise(of: string, lengthBytes: number): Buffer {
  const blocks = Array.from({ length: Math.ceil(lengthBytes / 32) }, (_, block) =>
    createHash('sha256').update(`${of} ${block}`).digest(),
  );
  return Buffer.concat(blocks).subarray(0, lengthBytes);
}

const parentVolume = Buffer.concat([noise('a', 300_000), Buffer.alloc(800_000), noise('b', 472_864)]);
const changes: readonly Extent[] = [{ offsetBytes: 65_536, lengthBytes: 131_072, zero: false }];
const childVolume = Buffer.from(parentVolume);
noise('c', 131_072).copy(childVolume, 65_536);
const memory = noise('memory', 100_001);

/** Where a walk works: `place/store` and `place/out` are watched, the inputs are not. */
interface Stage {
  readonly inputs: string;
  readonly place: string;
  readonly kind: Kind;
}

interface Request {
  readonly jobId: string;
  readonly backupId: string;
}

const storeOf = ({ place }: Stage): string => join(place, 'store');
const outOf = ({ place }: Stage): string => join(place, 'out');

async function backUp(
  stage: Stage,
  storage: Storage,
  request: Request,
  time: string,
  parent?: string,
): Promise<BackupEntry> {
  const writer = await storage.begin({ ...request, machine });
  const source = volumeSource(parent === undefined ? parentVolume : childVolume);
  const stored =
    parent === undefined
      ? await writer.addVolume(source, 'v')
      : await writer.addIncrement(source, { parent: { backupId: parent, target: 'vda' }, changes }, 'v');
  const state = await writer.addByCopy(join(stage.inputs, 'memory'), 'm');
  const definition = await writer.addByCopy(join(stage.inputs, 'definition'), 'd');
  await writer.flush();
  const read = parent === undefined ? 'full' : 'increment';
  const volume = { ...stored, virtualSizeBytes: childVolume.length, read } as const;
  return writer.commit(manifestOf({ id: request.backupId, time, volume, memory: state, definition }));
}

/** Copies volume and memory of a backup out, as a restore does. */
async function copyOut(storage: Storage, entry: BackupEntry, to: string): Promise<void> {
  const { manifest, directory } = entry;
  const volume = manifest?.volumes[0];
  if (manifest?.memory === undefined || volume === undefined) throw new Error('it has no volume or memory');
  const artifact = { path: join(directory, 'v'), sizeBytes: volume.storedBytes, sha256: volume.sha256 };
  await storage.copyOut(artifact, join(to, 'v'), { as: 'volume' });
  const state = { path: join(directory, 'm'), ...manifest.memory };
  await storage.copyOut(state, join(to, 'm'), { as: 'file' });
  const { sha256 } = manifest.definition;
  await storage.readText({ path: join(directory, 'd'), sha256 });
}

const goneRequest = { jobId: newId(), backupId: newId() };
const keptRequest = { jobId: newId(), backupId: newId() };
const newRequest = { jobId: newId(), backupId: newId() };
const kept = keptRequest.backupId;

/** A backup on top of another one, a restore of that, a verification, a deletion and a collection. */
async function session(stage: Stage, onRestore: (is: boolean) => void): Promise<void> {
  const storage = stage.kind.open(storeOf(stage));
  const entry = await backUp(stage, storage, newRequest, '2026-11-22T12:00:00.000Z', kept);
  onRestore(true);
  await copyOut(storage, await storage.find(kept), outOf(stage));
  onRestore(false);
  const report = await storage.verify(entry, { data: true });
  // A verification goes on, and tells which files it could not read.
  if (!report.ok) throw new StorageError('BACKUP_DAMAGED', JSON.stringify(report.files), { hint: 'told' });
  const gone = await storage.findCommitted(goneRequest.backupId);
  if (gone !== null) await storage.delete(gone);
  await stage.kind.collect(storeOf(stage));
}

async function prepared(t: Test, kind: Kind): Promise<Stage> {
  const inputs = t.testdir({ memory, definition: '<domain/>' });
  const stage = { inputs, kind, place: join(inputs, 'prepared') };
  await mkdir(storeOf(stage), { recursive: true });
  await mkdir(outOf(stage));
  await kind.prepare(storeOf(stage));
  const storage = kind.open(storeOf(stage));
  await backUp(stage, storage, goneRequest, '2026-11-22T10:00:00.000Z');
  await backUp(stage, storage, keptRequest, '2026-11-22T11:00:00.000Z');
  return stage;
}

/** What a backup that must be readable is not. */
async function problemsOf(stage: Stage, backupId: string): Promise<readonly string[]> {
  const storage = stage.kind.open(storeOf(stage));
  const entry = await storage.findCommitted(backupId);
  if (entry === null) return [`${backupId} is lost`];
  const { files } = await storage.verify(entry, { data: true });
  return files
    .filter(({ verdict }) => verdict !== 'ok')
    .map(({ file, detail }) => `${file}: ${detail ?? ''}`);
}

async function namesBelow(directory: string): Promise<readonly string[]> {
  return (await exists(directory)) ? readdir(directory) : [];
}

for (const kind of kinds) {
  void t.test(
    `${kind.name}: whatever call of backup, restore and collection fails, nothing is lost`,
    async (t) => {
      const template = await prepared(t, kind);
      let happened = 0;
      for (let round = 0; round < rounds; round++)
        for (let at = (seed + round) % every; ; at += every) {
          const place = join(template.inputs, 'stage');
          await cp(template.place, place, { recursive: true, preserveTimestamps: true });
          const outcome = await oneFault(t, { ...template, place }, at, round);
          await rm(place, { recursive: true });
          if (outcome === 'ended') break;
          if (outcome === 'failed') happened++;
        }
      t.ok(happened > 0);
      t.comment(`${happened} faults`);
    },
  );
}

/** One session in which one call fails, and the one after it. Returns `ended` when there is no such call. */
async function oneFault(
  t: Test,
  stage: Stage,
  at: number,
  round: number,
): Promise<'failed' | 'not possible' | 'ended'> {
  const { place, kind } = stage;
  using files = new FaultyFiles(place);
  const turn = (seed + Math.floor(at / every) + round) % faults.length;
  const inTurn = [...faults.slice(turn), ...faults.slice(0, turn)];
  let isRestore = false;
  let error: unknown = null;
  try {
    await files.run(at, inTurn, async () => session(stage, (is) => void (isRestore = is)));
  } catch (caught) {
    error = caught;
  }
  const { failed } = files;
  if (failed?.fault === null || failed === null) {
    if (error !== null) throw error;
    return files.calls.length <= at ? 'ended' : 'not possible';
  }
  const { errno, when } = failed.fault;
  const where = `${failed.operation} of ${failed.path.slice(place.length)} with ${errno}, ${when}, call ${at}`;
  if (errno === null) t.equal(error, null, where);
  else if (error instanceof StillpointError) t.ok(error.hint, `${where}: a hint`);
  // Who copies out knows better which of the two places is at fault.
  else if (error !== null && !(isRestore && isSystemError(error)))
    t.fail(where, { error: error instanceof Error ? error.stack : error });
  t.same(await openBelow(place), [], `${where}: nothing is open`);
  t.same(await problemsOf(stage, kept), [], `${where}: nothing published is lost`);
  if ((await kind.open(storeOf(stage)).findCommitted(newRequest.backupId)) !== null)
    t.same(await problemsOf(stage, newRequest.backupId), [], `${where}: what is listed is whole`);

  for (const name of await readdir(outOf(stage))) await rm(join(outOf(stage), name));
  // The job is repeated under its own names, as the engine does it.
  await session(stage, () => undefined);
  await kind.open(storeOf(stage)).cleanUp();
  t.same(await problemsOf(stage, newRequest.backupId), [], `${where}: the next run`);
  t.same((await readFile(join(outOf(stage), 'm'))).equals(memory), true);
  t.same(await kind.strays(storeOf(stage)), [], `${where}: nothing stays`);
  return 'failed';
}

function isSystemError(error: unknown): boolean {
  return error instanceof Error && 'syscall' in error;
}
