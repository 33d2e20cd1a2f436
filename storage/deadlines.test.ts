import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { BandwidthLimit } from '../common/bandwidth.ts';
import type { FileDigest } from '../common/copy.ts';
import type { VolumeSource } from '../common/volumeSource.ts';
import { newId } from '../common/ids.ts';
import { DeadlineStorage } from './deadlines.ts';
import { DirectoryStorage } from './directory/directoryStorage.ts';
import { makeSample, storeSample } from './directory/fixture.ts';
import { piecesInFlight } from './directory/qcow2Writer.ts';
import { GeneratedSource, turns } from './directory/volumeFixture.ts';
import { type HostManifest, hostManifestVersion } from './hostManifest.ts';
import type { BackupWriter, Storage } from './storage.ts';

const patience = { answerMs: 50, stallMs: 150 };
const machine = { name: 'vm', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };

/** The same thing, but its methods hang, or do what `instead` says. */
function hanging<T extends object>(real: T, instead: Partial<T> = {}): T {
  return new Proxy(real, {
    get: (target, key): unknown => {
      if (key in instead) return Reflect.get(instead, key);
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? () => Promise.withResolvers<never>().promise : value;
    },
  });
}

const hostManifest: HostManifest = {
  formatVersion: hostManifestVersion,
  kind: 'host',
  id: newId(),
  writer: 'test',
  host: { name: 'node', libvirt: '9.0.0', qemu: '7.2.0' },
  pointInTime: new Date().toISOString(),
  items: [],
};

void t.test('no operation of a storage that hangs keeps its caller waiting', async (t) => {
  const work = t.testdir({ root: {} });
  const real = new DirectoryStorage({ name: 'nas', path: join(work, 'root') });
  const entry = await storeSample(real, await makeSample(work));
  const storage = new DeadlineStorage(hanging<Storage>(real), patience);
  const calls: Record<string, () => Promise<unknown>> = {
    takesByRename: () => storage.takesByRename('/'),
    isOnDeviceOf: () => storage.isOnDeviceOf('/'),
    sharesBlocks: () => storage.sharesBlocks(),
    space: () => storage.space(),
    begin: () => storage.begin({ jobId: 'j', backupId: newId(), machine }),
    findCommitted: () => storage.findCommitted('id'),
    list: () => storage.list(),
    find: () => storage.find('id'),
    verify: () => storage.verify(entry, { data: true }),
    delete: () => storage.delete(entry),
    setProtected: () => storage.setProtected(entry, null),
    addVerification: () =>
      storage.addVerification(
        entry,
        { at: new Date().toISOString(), ok: true, start: 'boot', evidence: null, detail: '', durationMs: 1 },
        null,
      ),
    addDataVerification: () =>
      storage.addDataVerification(entry, { at: '2026-11-22T10:00:00.000Z', ok: true }),
    copyOut: () => storage.copyOut({ path: 'f', sizeBytes: 1, sha256: 'x' }, 'to', { as: 'file' }),
    open: () => storage.open({ path: 'f', sha256: 'x' }),
    requireReading: () => storage.requireReading(),
    readText: () => storage.readText({ path: 'f', sha256: 'x' }),
    isSameAs: () => storage.isSameAs({ sha256: 'x' }, 'f'),
    hostFile: () => storage.hostFile({ directory: work }, 'f'),
    reading: () => storage.reading('a file', () => Promise.resolve()),
    addHostBackup: () => storage.addHostBackup(hostManifest, new Map()),
    hostBackups: () => storage.hostBackups(),
    deleteHostBackup: () => storage.deleteHostBackup({ directory: work }),
    partials: () => storage.partials(),
    cleanUp: () => storage.cleanUp(),
  };
  for (const [name, call] of Object.entries(calls))
    await t.rejects(call(), { code: 'STORAGE_UNREACHABLE', retryable: true, hint: real.location }, name);
  t.match(await storage.check(), { ok: false, problem: { code: 'STORAGE_UNREACHABLE' } });
  t.same(
    new Set(Object.getOwnPropertyNames(DeadlineStorage.prototype)),
    new Set(['constructor', 'name', 'kind', 'location', 'bounds', 'check', ...Object.keys(calls)]),
    'a method that is new is asked for here',
  );
});

void t.test(
  'a reader of stored files is told when the storage has stood still, and not before',
  async (t) => {
    const work = t.testdir({ root: {} });
    const storage = new DeadlineStorage(
      new DirectoryStorage({ name: 'nas', path: join(work, 'root') }),
      patience,
    );
    const slow = storage.reading('a file', async (watch) => {
      for (let block = 0; block < 8; block += 1) {
        await sleep(patience.stallMs / 3);
        watch.alive();
      }
      return 'read';
    });
    t.equal(await slow, 'read');
    let signal: AbortSignal | undefined;
    const stuck = storage.reading('a file', (watch) => {
      signal = watch.signal;
      return Promise.withResolvers<never>().promise;
    });
    await t.rejects(stuck, { code: 'STORAGE_UNREACHABLE' });
    t.equal(signal?.aborted, true);
  },
);

void t.test('a copy that goes on takes as long as it takes; one that stands still is given up', async (t) => {
  const work = t.testdir({ root: {} });
  const real: Storage = new DirectoryStorage({ name: 'nas', path: join(work, 'root') });
  const writer = await real.begin({ jobId: 'j', backupId: newId(), machine });
  const digest = { sizeBytes: 1, sha256: 'x' };
  const storeWith = async (addByCopy: BackupWriter['addByCopy']): Promise<FileDigest> => {
    const begin = (): Promise<BackupWriter> => Promise.resolve(hanging<BackupWriter>(writer, { addByCopy }));
    const storage = new DeadlineStorage(hanging(real, { begin }), patience);
    return (await storage.begin({ jobId: 'j', backupId: newId(), machine })).addByCopy('/a', 'b', {});
  };
  const slow: BackupWriter['addByCopy'] = async (_from, _name, options) => {
    for (let block = 0; block < 8; block += 1) {
      await sleep(patience.stallMs / 3);
      options?.onProgress?.(block);
    }
    return digest;
  };
  t.same(await storeWith(slow), digest);
  let signal: AbortSignal | undefined;
  const stuck: BackupWriter['addByCopy'] = (_from, _name, options) => {
    signal = options?.signal;
    return Promise.withResolvers<never>().promise;
  };
  await t.rejects(storeWith(stuck), { code: 'STORAGE_UNREACHABLE' });
  t.equal(signal?.aborted, true, 'what hangs is told to stop when it wakes up');
  const begin = (): Promise<BackupWriter> => Promise.resolve(hanging<BackupWriter>(writer));
  const begun = await new DeadlineStorage(hanging(real, { begin }), patience).begin({
    jobId: 'j',
    backupId: newId(),
    machine,
  });
  const { manifest } = await makeSample(work);
  const calls: readonly (() => Promise<unknown>)[] = [
    () => begun.addByRename('/a', 'b'),
    () => begun.addVolume(new GeneratedSource(512, turns([512], false)), 'b'),
    () => begun.has('b'),
    () => begun.commit(manifest),
    () => begun.abandon(),
  ];
  for (const call of calls) await t.rejects(call(), { code: 'STORAGE_UNREACHABLE' });
});

void t.test('a copy that wakes up late does not meet the one that was begun after it', async (t) => {
  const work = t.testdir({ root: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(work, 'root') });
  const writer = await storage.begin({ jobId: 'j', machine });
  await writeFile(join(work, 'large'), Buffer.alloc(9 * 1024 * 1024, 1));
  const began = Promise.withResolvers<void>();
  const late = writer.addByCopy(join(work, 'large'), 'large', {
    limit: new BandwidthLimit(8 * 1024 * 1024),
    onProgress: () => began.resolve(),
  });
  await began.promise;
  const digest = await writer.addByCopy(join(work, 'large'), 'large');
  await t.rejects(late, { cause: { code: 'ENOENT' } });
  t.same(
    await writer.addByCopy(join(work, 'large'), 'large'),
    digest,
    'the file is the one that was complete',
  );
});

void t.test('a volume may take long, from a slow source too', async (t) => {
  const work = t.testdir({ root: {} });
  const real: Storage = new DirectoryStorage({ name: 'nas', path: join(work, 'root') });
  const storage = new DeadlineStorage(real, { answerMs: 5000, stallMs: 900 });
  const writer = await storage.begin({ jobId: 'j', backupId: newId(), machine });
  const size = 16 * 1024 * 1024;
  const good = new GeneratedSource(size, turns([size], false));
  let asked = 0;
  // One answer after the other, the first last: what is written waits for it.
  const slow = {
    virtualSizeBytes: size,
    extents: () => sleep(600).then(() => good.extents()),
    readInto: async (target: Buffer, offsetBytes: number) => {
      asked += 1;
      await sleep(600 * (piecesInFlight - ((asked - 1) % piecesInFlight)));
      await good.readInto(target, offsetBytes);
    },
  };
  const progress: number[] = [];
  const digest = await writer.addVolume(slow, 'slow', { onProgress: (bytes) => progress.push(bytes) });
  t.equal(progress.at(-1), digest.sizeBytes, 'the caller sees the progress as well');

  const reason = new Error('enough');
  await t.rejects(writer.addVolume(good, 'aborted', { signal: AbortSignal.abort(reason) }), reason);
});

void t.test('a storage is not to blame for a source that has it wait for others', async (t) => {
  const work = t.testdir({ root: {} });
  const real = new DirectoryStorage({ name: 'nas', path: join(work, 'root') });
  const storage = new DeadlineStorage(real, patience);
  const writer = await storage.begin({ jobId: 'j', backupId: newId(), machine });
  const size = 1024 * 1024;
  const good = new GeneratedSource(size, turns([size], false));
  const waiting: VolumeSource = {
    virtualSizeBytes: size,
    extents: () => good.extents(),
    readInto: async (target, offsetBytes) => {
      await sleep(3 * patience.stallMs);
      await good.readInto(target, offsetBytes);
    },
  };
  t.match(await writer.addVolume(waiting, 'waiting'), { sha256: String });
});

void t.test('a storage whose own source stands still is named, and told to stop', async (t) => {
  const work = t.testdir({ root: {} });
  const real: Storage = new DirectoryStorage({ name: 'nas', path: join(work, 'root') });
  let given: AbortSignal | undefined;
  const source: VolumeSource = {
    virtualSizeBytes: 512,
    extents: () => Promise.resolve([]),
    readInto: (_target, _offsetBytes, signal) => {
      given = signal;
      return Promise.withResolvers<never>().promise;
    },
  };
  const open = () => Promise.resolve({ source, changesSince: () => Promise.resolve([]) });
  const storage = new DeadlineStorage(hanging<Storage>(real, { open }), patience);
  const opened = await storage.open({ path: 'f', sha256: 'x' });
  if (opened === null) throw new Error('it is a file');
  await t.rejects(opened.source.readInto(Buffer.alloc(512), 0), {
    code: 'STORAGE_UNREACHABLE',
    message: /nas has not answered for .*reading f/,
  });
  t.equal(given?.aborted, true);
});
