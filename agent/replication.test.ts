import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { DirectoryStorage } from '../storage/directory/directoryStorage.ts';
import { StorageError } from '../storage/errors.ts';
import {
  copiedVolume,
  placeFor,
  stoppingStorage,
  someVolume,
  store,
} from '../storage/repositoryStorage/fixture.ts';
import { volumeSource } from '../storage/repository/repositoryFixture.ts';
import type { RepositoryStorage } from '../storage/repositoryStorage/repositoryStorage.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import { readAttempt } from '../storage/repository/backups.ts';
import { collectGarbage } from '../storage/repository/collection.ts';
import { sessionName } from '../storage/repository/names.ts';
import { putObject } from '../storage/repository/objects.ts';
import { thisSessionOwner } from '../storage/repository/sessionOwner.ts';
import { copyBackup, type CopyOptions, planReplication } from './replication.ts';

/** The path of a socket must be short. */
async function optionsFor(test: Test): Promise<CopyOptions> {
  const runDirectory = await mkdtemp(join(tmpdir(), 'stillpoint-run-'));
  test.teardown(() => rm(runDirectory, { recursive: true }));
  return {
    signal: new AbortController().signal,
    runDirectory,
    onProgress: () => undefined,
    onLeftOpen: (error) => test.error(error),
  };
}

async function replicateAll(
  from: Storage,
  to: Storage,
  options: CopyOptions,
): Promise<readonly BackupEntry[]> {
  const copies: BackupEntry[] = [];
  for (const planned of await planReplication({ machines: [], from, to, older: false }))
    copies.push(await copyBackup(from, to, planned, options));
  return copies;
}

void t.test(
  'backups go from a repository to another one, to a directory and back, and are the same',
  async (t) => {
    const first = await placeFor(t);
    const second = await placeFor(t, 'second', first.directory);
    const third = await placeFor(t, 'third', first.directory);
    const root = join(first.directory, 'plain');
    await mkdir(root);
    const plain = new DirectoryStorage({ name: 'plain', path: root });
    const options = await optionsFor(t);

    const volumes = [someVolume(), someVolume()];
    volumes[1]?.fill(0, 0, 500_000);
    const stored = [
      await store(first, volumes[0] ?? Buffer.alloc(0), { time: '2026-11-22T10:00:00.000Z' }),
      await store(first, volumes[1] ?? Buffer.alloc(0), { time: '2026-11-22T11:00:00.000Z' }),
    ];
    for (const [from, to] of [
      [first.storage, second.storage],
      [second.other(), plain],
      [plain, third.storage],
    ] as const) {
      const copies = await replicateAll(from, to, options);
      t.same(
        copies.map(({ id }) => id),
        stored.map(({ entry }) => entry.id),
        `${from.name} to ${to.name}`,
      );
      for (const copy of copies) t.match(await to.verify(copy, { data: true }), { ok: true });
      t.same(await planReplication({ machines: [], from, to, older: true }), [], 'nothing is left to copy');
    }
    for (const [index, { entry, memory }] of stored.entries()) {
      const back = await third.other().find(entry.id ?? '');
      t.ok((await copiedVolume(third, third.storage, back)).equals(volumes[index] ?? Buffer.alloc(0)));
      t.match(back.manifest, {
        machine: entry.machine,
        definition: { autostart: true },
        labels: { why: 'test' },
      });
      const to = join(first.directory, `state-${index}`);
      const { path = 'm', sha256 = '' } = { sha256: back.manifest?.memory?.sha256 };
      await third.storage.copyOut({ path, sizeBytes: 0, sha256 }, to, { as: 'file' });
      t.ok((await readFile(to)).equals(memory));
    }
  },
);

/** Counts what is read of volumes and files. */
function countingReads(storage: RepositoryStorage): {
  readonly storage: Storage;
  readonly readBytes: () => number;
} {
  let readBytes = 0;
  const open = storage.open.bind(storage);
  storage.open = async (artifact) => {
    const opened = await open(artifact);
    const { source } = opened;
    const readInto = (target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> => {
      readBytes += target.length;
      return source.readInto(target, offsetBytes, signal);
    };
    const { virtualSizeBytes } = source;
    return {
      changesSince: (sha256) => opened.changesSince(sha256),
      source: { virtualSizeBytes, extents: (signal) => source.extents(signal), readInto },
    };
  };
  return { storage, readBytes: () => readBytes };
}

void t.test('of a volume that a repository has copied before, only what differs is read', async (t) => {
  const first = await placeFor(t);
  const second = await placeFor(t, 'second', first.directory);
  const options = await optionsFor(t);
  const before = someVolume();
  await store(first, before, { time: '2026-11-22T10:00:00.000Z' });
  await replicateAll(first.storage, second.storage, options);
  const after = Buffer.from(before);
  after.fill(7, 0, 4096);
  await store(first, after, { time: '2026-11-22T11:00:00.000Z' });
  const opened = await first.other().open({ path: 'v', sha256: await rootOf(first.storage, 1) });
  const changes = await opened.changesSince(await rootOf(first.storage, 0));
  t.same(changes, [{ offsetBytes: 0, lengthBytes: 65_536, zero: false }]);
  const counting = countingReads(first.other());
  const [copy] = await replicateAll(counting.storage, second.other(), options);
  if (copy === undefined) throw new Error('nothing was copied');
  const othersBytes = (copy.manifest?.memory?.sizeBytes ?? 0) + 3 * '<domain/>'.length;
  t.equal(counting.readBytes(), 65_536 + othersBytes, 'one chunk of the volume');
  t.ok((await copiedVolume(second, second.other(), copy)).equals(after));
});

void t.test('where what it differs from is damaged, all of a volume is read', async (t) => {
  const first = await placeFor(t);
  const second = await placeFor(t, 'second', first.directory);
  const options = await optionsFor(t);
  await store(first, someVolume(), { time: '2026-11-22T10:00:00.000Z' });
  await replicateAll(first.storage, second.storage, options);
  const root = await rootOf(first.storage, 0);
  const after = someVolume();
  await store(first, after, { time: '2026-11-22T11:00:00.000Z' });
  const from = first.other();
  const open = from.open.bind(from);
  from.open = async (artifact) => {
    const { source } = await open(artifact);
    const damaged = new StorageError('BACKUP_DAMAGED', 'its root is gone');
    return {
      source,
      changesSince: (sha256) => Promise.reject(sha256 === root ? damaged : new Error('another')),
    };
  };
  const [copy] = await replicateAll(from, second.other(), options);
  if (copy === undefined) throw new Error('nothing was copied');
  t.ok((await copiedVolume(second, second.other(), copy)).equals(after));
});

async function rootOf(storage: Storage, index: number): Promise<string> {
  return (await storage.list())[index]?.manifest?.volumes[0]?.sha256 ?? '';
}

void t.test(
  'what is damaged is not copied, and what is older than the newest copy only if asked for',
  async (t) => {
    const { directory, storage } = await placeFor(t);
    const target = await placeFor(t, 'second', directory);
    const root = join(directory, 'plain');
    await mkdir(root);
    const plain = new DirectoryStorage({ name: 'plain', path: root });
    const options = await optionsFor(t);
    await store({ directory, storage, other: () => storage }, someVolume(), {
      time: '2026-11-22T10:00:00.000Z',
    });
    await replicateAll(storage, plain, options);
    const [machine = ''] = await readdir(root);
    const [time = ''] = await readdir(join(root, machine));
    const volume =
      (await readdir(join(root, machine, time))).find((name) => /qcow2\.[^.]+\.[^.]+$/.test(name)) ?? '';
    const file = join(root, machine, time, volume);
    await execa('qemu-io', ['-c', 'write -P 9 0 4k', file]);
    const [entry] = await plain.list();
    if (entry === undefined) throw new Error('it was not copied');
    await t.rejects(copyBackup(plain, target.storage, { entry, parent: null }, options), {
      code: 'BACKUP_DAMAGED',
      hint: /verify/,
    });
    t.same(await target.storage.list(), []);

    await store(target, someVolume(), { time: '2026-11-22T12:00:00.000Z' });
    const request = { machines: [], from: storage, to: target.storage };
    t.same(await planReplication({ ...request, older: false }), []);
    t.equal((await planReplication({ ...request, older: true })).length, 1);
    t.same(await planReplication({ ...request, older: true, machines: ['another'] }), []);
  },
);

void t.test('a container that is encrypted stands in a qcow2 image in a directory', async (t) => {
  const first = await placeFor(t);
  const root = join(first.directory, 'plain');
  await mkdir(root);
  const plain = new DirectoryStorage({ name: 'plain', path: root });
  const container = Buffer.concat([Buffer.from('LUKS\u00ba\u00be', 'latin1'), randomBytes(131_066)]);
  await store(first, container, { encrypted: true });
  const [copy] = await replicateAll(first.storage, plain, await optionsFor(t));
  if (copy === undefined) throw new Error('nothing was copied');
  t.match(await plain.verify(copy, { data: true }), { ok: true });
  const raw = join(first.directory, 'raw');
  const image = join(copy.directory, copy.manifest?.volumes[0]?.file ?? '');
  await execa('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', image, raw]);
  t.ok((await readFile(raw)).equals(container));
});

void t.test('a backup that was deleted there does not come back', async (t) => {
  const first = await placeFor(t);
  const second = await placeFor(t, 'second', first.directory);
  const options = await optionsFor(t);
  const { entry } = await store(first, someVolume());
  const [copy] = await replicateAll(first.storage, second.storage, options);
  if (copy === undefined) throw new Error('nothing was copied');
  await second.storage.delete(copy);
  await t.rejects(copyBackup(first.storage, second.storage, { entry, parent: null }, options), {
    code: 'BACKUP_FENCED',
  });
});

/** The packs of a repository, with all their bytes, and its sessions. */
async function stateOf({ directory }: { readonly directory: string }, name: string) {
  const names = await readdir(join(directory, name), { recursive: true });
  const sessions = names.filter((file) => file.startsWith('sessions/'));
  const packs = names.filter((file) => /^packs\/..\/./.test(file));
  let packBytes = 0;
  for (const pack of packs) packBytes += (await stat(join(directory, name, pack))).size;
  return { sessions, packs, packBytes };
}

void t.test(
  'a copy that was interrupted holds up no collection, and what arrived is not sent again',
  async (t) => {
    const first = await placeFor(t);
    const second = await placeFor(t, 'second', first.directory);
    const { entry } = await store(first, someVolume());
    const interruption = new AbortController();
    const options = {
      ...(await optionsFor(t)),
      signal: interruption.signal,
    };
    const planned = { entry, parent: null };
    const stopping = stoppingStorage(first, 'second', () => interruption.abort(new Error('enough')));
    await t.rejects(copyBackup(first.storage, stopping, planned, options), { message: 'enough' });
    const interrupted = await stateOf(first, 'second');
    t.same(interrupted.sessions, []);
    t.not(interrupted.packs.length, 0);
    const copy = await copyBackup(first.storage, second.other(), planned, await optionsFor(t));
    t.equal(copy.id, entry.id, 'as the same backup');
    t.match(await second.other().verify(copy, { data: true }), { ok: true });
    const whole = await stateOf(first, 'second');
    t.same(whole.sessions, []);
    const { packBytes } = await stateOf(first, 'vault');
    t.ok(whole.packBytes < packBytes * 1.05, 'nothing of the volume is sent again');
    await second.other().delete(copy);
    t.same(await second.other().list(), []);
  },
);

void t.test('a copy whose process was killed is ended by the next one, which announces itself', async (t) => {
  const first = await placeFor(t);
  const second = await placeFor(t, 'second', first.directory);
  const { entry } = await store(first, someVolume());
  const id = entry.id ?? '';
  const { context } = await second.other().repository();
  const startedAt = new Date().toISOString();
  const dead = { host: hostname(), processId: 2 ** 22 + 1, owner: thisSessionOwner(), startedAt };
  const text = JSON.stringify({ formatVersion: 1, backupId: id, jobId: id, ...dead });
  await putObject(context, 'session', sessionName(id), Buffer.from(text));
  await copyBackup(first.storage, second.other(), { entry, parent: null }, await optionsFor(t));
  t.same((await stateOf(first, 'second')).sessions, []);
  t.equal(await readAttempt(context, { backupId: id, attempt: 1 }), 'fenced', 'who was dead stays so');
  t.match(await readAttempt(context, { backupId: id, attempt: 2 }), { id });
});

void t.test('a backup whose copy was given up by a collection can be copied all the same', async (t) => {
  const first = await placeFor(t);
  const second = await placeFor(t, 'second', first.directory);
  const options = await optionsFor(t);
  const volume = someVolume();
  const { entry } = await store(first, volume);
  const id = entry.id ?? '';
  // Of a process that died.
  const machine = entry.manifest?.machine ?? { name: '', uuid: '' };
  const dead = await second.other().begin({ jobId: id, backupId: id, machine, afterFence: true });
  await dead.addVolume(volumeSource(volume), 'v');
  await dead.flush();
  const collected = await collectGarbage(await second.other().repository(), {
    collector: { host: 'test', at: new Date().toISOString() },
    repackBelow: 0,
    onOpenSession: () => Promise.resolve('fence'),
  });
  t.match(collected, { fencedBackups: [id], waitingFor: [] });
  const copy = await copyBackup(first.storage, second.other(), { entry, parent: null }, options);
  t.equal(copy.id, id);
  t.ok((await copiedVolume(second, second.other(), copy)).equals(volume));
  t.same(
    (await second.other().list()).map((one) => one.id),
    [id],
    'once',
  );
  t.same(await planReplication({ machines: [], from: first.storage, to: second.other(), older: true }), []);
  await t.rejects(dead.commit(copy.manifest ?? raise('no manifest')), { code: 'BACKUP_FENCED' });
  const again = { collector: { host: 'test', at: new Date().toISOString() }, repackBelow: 1 };
  const onOpenSession = () => Promise.resolve('leave' as const);
  t.match(await collectGarbage(await second.other().repository(), { ...again, onOpenSession }), {
    waitingFor: [],
  });
  t.ok(
    (await copiedVolume(second, second.other(), copy)).equals(volume),
    'a collection knows that it is needed',
  );
});

function raise(what: string): never {
  throw new Error(what);
}
