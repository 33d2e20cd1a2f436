import { randomBytes } from 'node:crypto';
import { mkdir, readdir, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { newId } from '../common/ids.ts';
import { configSchema } from '../config/schema.ts';
import { eventually } from '../test/lab/eventually.ts';
import { randomFrom } from '../test/sim/history.ts';
import { FileBackend } from '../storage/backends/fileBackend.ts';
import { makeKeyFile } from '../storage/repository/keyFile.ts';
import { Repository } from '../storage/repository/repository.ts';
import { volumeSource } from '../storage/repository/repositoryFixture.ts';
import { StorageBandwidths } from './storageBandwidths.ts';
import { storagesOf } from './storages.ts';

void t.test('what a killed writer has left in a repository goes after a day', async (t) => {
  const root = t.testdir({ tmp: { old: 'x', young: 'x' } });
  const dayBeforeYesterday = new Date(Date.now() - 48 * 3600 * 1000);
  await utimes(join(root, 'tmp/old'), dayBeforeYesterday, dayBeforeYesterday);
  const config = configSchema.parse({
    storages: { vault: { kind: 'repository', url: `file://${root}`, keyFile: '/none' } },
  });
  t.equal(await storagesOf(config).get('vault')?.cleanUp(), 1);
  t.same(await readdir(join(root, 'tmp')), ['young']);
});

void t.test('a repository that was not made yet says so, and what makes it', async (t) => {
  const config = configSchema.parse({
    storages: {
      vault: { kind: 'repository', url: `file://${t.testdir()}/vault`, keyFile: `${t.testdirName}/key` },
    },
  });
  t.match(await storagesOf(config).get('vault')?.check(), {
    ok: false,
    problem: { code: 'REPOSITORY_NOT_FOUND', hint: /^stillpoint storage init vault;/ },
  });
});

void t.test(
  'what goes into a directory is held to its bandwidth, which a running job sees change',
  async (t) => {
    const path = join(t.testdir(), 'local');
    await mkdir(path);
    const configOf = (bandwidthBytesPerSecond: number) =>
      configSchema.parse({ storages: { local: { kind: 'directory', path, bandwidthBytesPerSecond } } });
    const slowest = 512 * 1024;
    t.throws(() => configOf(1), /expected 0 or at least 524288/);
    const bandwidths = new StorageBandwidths(configOf(slowest));
    const storage = storagesOf(configOf(slowest), bandwidths).get('local');
    const machine = { name: 'm', uuid: newId() };
    const writer = await storage?.begin({ jobId: newId(), backupId: newId(), machine });
    const startedMs = performance.now();
    let doneBytes = 0;
    const onProgress = (bytes: number): void => void (doneBytes = bytes);
    const adding = writer?.addVolume(volumeSource(randomBytes(100 * slowest)), 'v', { onProgress });
    await eventually(() => doneBytes > 0);
    t.ok(doneBytes < 50 * slowest, `${doneBytes} bytes at once`);
    t.same(bandwidths.follow(configOf(0)), ['local']);
    await adding;
    t.ok(performance.now() - startedMs < 50_000, '50 MiB, which would take 100 s');
  },
);

void t.test(
  'what goes to a repository is held to its bandwidth, which a running job sees change',
  async (t) => {
    const root = join(t.testdir(), 'vault');
    const keyFile = `${t.testdirName}/key`;
    await mkdir(root);
    const secret = await makeKeyFile(keyFile);
    if (secret === null) throw new Error('no key');
    const createdAt = new Date().toISOString();
    const sizes = { chunkSizeBytes: 65_536, packSizeBytes: 131_072 };
    await Repository.init(new FileBackend(root), { secret, label: 'test', createdAt, ...sizes });
    const configOf = (bandwidthBytesPerSecond: number) =>
      configSchema.parse({
        storages: { vault: { kind: 'repository', url: `file://${root}`, keyFile, bandwidthBytesPerSecond } },
      });
    const slowest = 512 * 1024;
    t.throws(() => configOf(1), /expected 0 or at least 524288/);
    const bandwidths = new StorageBandwidths(configOf(slowest));
    const storage = storagesOf(configOf(slowest), bandwidths).get('vault');
    const machine = { name: 'm', uuid: newId() };
    const writer = await storage?.begin({ jobId: newId(), backupId: newId(), machine });
    const startedMs = performance.now();
    await writer?.addVolume(volumeSource(randomBytes(slowest / 2)), 'v');
    await writer?.flush();
    // What was sent last is paid for by whoever comes next.
    const leastMs = 1000 / 2 - (sizes.packSizeBytes / slowest) * 1000 - 50;
    t.ok(performance.now() - startedMs >= leastMs, `not before ${leastMs} ms`);
    const waiting = writer?.addVolume(volumeSource(randomBytes(100 * slowest)), 'w');
    t.same(bandwidths.follow(configOf(0)), ['vault']);
    t.same(bandwidths.follow(configOf(0)), [], 'only once');
    await waiting;
    await writer?.flush();
    t.ok(performance.now() - startedMs < 50_000, '50 MiB, which would take 100 s');
  },
);

void t.test('a repository compresses as much as it is told, and what it has it keeps', async (t) => {
  const directory = t.testdir();
  const [root, keyFile] = [join(directory, 'vault'), join(directory, 'key')];
  await mkdir(root);
  const secret = await makeKeyFile(keyFile);
  if (secret === null) throw new Error('no key');
  const createdAt = new Date().toISOString();
  await Repository.init(new FileBackend(root), { secret, label: 'test', createdAt, chunkSizeBytes: 65_536 });
  // The same in each run: how well it compresses is what is looked at.
  const random = randomFrom(1);
  const upTo = (count: number): number => Math.floor(random() * count);
  const letters = 'abcdefghijklmnopqrstuvwxyz';
  const word = (): string =>
    Array.from({ length: 3 + upTo(9) }, () => letters[upTo(letters.length)]).join('');
  const words = Array.from({ length: 2000 }, word);
  const text = (): Buffer =>
    Buffer.from(Array.from({ length: 100_000 }, () => words[upTo(words.length)]).join(' '));
  /** Bytes that packs grow by when this is written. */
  const taken = async (content: Buffer, ofStorage: object): Promise<number> => {
    const vault = { kind: 'repository', url: `file://${root}`, keyFile, ...ofStorage };
    const storage = storagesOf(configSchema.parse({ storages: { vault } })).get('vault');
    const before = await storage?.space({ measured: true });
    const machine = { name: 'm', uuid: newId() };
    const writer = await storage?.begin({ jobId: newId(), backupId: newId(), machine });
    await writer?.addVolume(volumeSource(content), 'v');
    await writer?.flush();
    const after = await storage?.space({ measured: true });
    return (after?.storedBytes ?? 0) - (before?.storedBytes ?? 0);
  };
  const content = text();
  const plain = await taken(content, { compressionLevel: 0 });
  t.ok(plain > content.length, `${plain} of ${content.length} bytes without compression`);
  t.ok((await taken(content, { compressionLevel: 19 })) < content.length / 10, 'chunks that are there stay');
  const fast = await taken(text(), { compressionLevel: 1 });
  const usual = await taken(text(), {});
  const best = await taken(text(), { compressionLevel: 19 });
  t.ok(fast < 0.8 * plain, `${fast} bytes with level 1`);
  t.ok(usual < 0.97 * fast, `${usual} bytes unless told, ${fast} with level 1`);
  t.ok(best < usual, `${best} bytes with level 19, ${usual} unless told`);
});

void t.test('a repository in a directory knows what goes with its file system', async (t) => {
  const directory = t.testdir({ image: '' });
  const config = configSchema.parse({
    storages: {
      vault: { kind: 'repository', url: `file://${directory}/vault`, keyFile: '/none' },
      cloud: {
        kind: 'repository',
        url: 's3://bucket',
        endpoint: 'https://s3.example',
        credentialsFile: '/c',
        keyFile: '/k',
      },
    },
  });
  const storages = storagesOf(config);
  t.equal(await storages.get('vault')?.isOnDeviceOf(join(directory, 'image')), true);
  t.equal(await storages.get('vault')?.takesByRename(join(directory, 'image')), false, 'files are cut up');
  t.equal(await storages.get('vault')?.isOnDeviceOf('/proc/self'), false);
  t.equal(await storages.get('cloud')?.isOnDeviceOf(join(directory, 'image')), false);
});
