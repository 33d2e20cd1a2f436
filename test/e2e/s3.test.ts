import { spawn } from 'node:child_process';
import { hash, randomBytes, randomInt } from 'node:crypto';
import dns from 'node:dns';
import { once } from 'node:events';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { S3 } from '@aws-sdk/client-s3';
import t from 'tap';
import * as z from 'zod';
import { isErrno } from '../../common/errors.ts';
import { type Backend, listAll } from '../../storage/backends/backend.ts';
import { S3Backend } from '../../storage/backends/s3Backend.ts';
import type { S3Settings } from '../../storage/backends/s3Settings.ts';
import { listBackups, readManifest } from '../../storage/repository/backups.ts';
import { Repository } from '../../storage/repository/repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  someVolume,
  testChunkBytes,
  testSecret,
} from '../../storage/repository/repositoryFixture.ts';
import { verifyRepository } from '../../storage/repository/verifyRepository.ts';
import { backendConformance } from '../conformance/backend.ts';
import { eventually } from '../lab/eventually.ts';
import { Radosgw } from '../lab/radosgw.ts';
import { CuttingProxy } from '../sim/cuttingProxy.ts';

/* The S3 backend on a real server. */

const server = await Radosgw.start();
t.teardown(async () => server.stop());
await server.createBucket('vault');
const mebibyte = 1024 * 1024;
let prefixes = 0;

/** Places of their own in the bucket. */
function newPrefix(): string {
  prefixes++;
  return `tests/${prefixes}`;
}

async function open(prefix: string, change: Partial<S3Settings> = {}): Promise<S3Backend> {
  const { endpoint, credentials } = server;
  return S3Backend.open({ endpoint, credentials, bucket: 'vault', prefix, ...change });
}

void t.test('radosgw', async (t) => {
  await backendConformance(t, async () => {
    const prefix = newPrefix();
    const backends = await Promise.all([1, 2, 3, 4].map(async () => open(prefix)));
    const inTurn = (function* (): Generator<Backend, never> {
      for (;;) yield* backends;
    })();
    return { client: () => inTurn.next().value };
  });
});

void t.test('it honours conditions, as is found out by trying', async (t) => {
  t.equal(await (await open(newPrefix())).createsExclusively(), true);
});

void t.test('it compares what it gets with its MD5, and not with the newer checksums', async (t) => {
  const { endpoint, credentials } = server;
  const s3 = new S3({ endpoint, credentials, region: 'us-east-1', forcePathStyle: true });
  t.teardown(() => s3.destroy());
  const object = { Bucket: 'vault', Key: `${newPrefix()}/keys/a`, Body: 'x' };
  const digestOf = (algorithm: string): string => hash(algorithm, 'y', 'base64');
  await t.rejects(s3.putObject({ ...object, ContentMD5: digestOf('md5') }), { name: 'BadDigest' });
  await s3.putObject({ ...object, ChecksumSHA256: digestOf('sha256') });
});

void t.test('a listing goes on over its pages', async (t) => {
  const backend = await open(newPrefix(), { limits: { pageNames: 3 } });
  const names = Array.from({ length: 10 }, (_, index) => `packs/aa/${index}`);
  await Promise.all(names.map(async (name) => backend.create(name, [Buffer.from(name)])));
  const listed = (await listAll(backend, 'packs/')).map(({ name }) => name);
  t.same(listed.toSorted(), names);
});

void t.test('the bucket can stand before the host', async (t) => {
  const { lookup } = dns;
  t.teardown(() => (dns.lookup = lookup));
  const asked = new Set<string>();
  dns.lookup = Object.assign((name: string, options: object, done: (...answer: unknown[]) => void) => {
    asked.add(name);
    lookup('127.0.0.1', options, done);
  }, lookup);
  const endpoint = `http://${server.dnsName}:${new URL(server.endpoint).port}`;
  const prefix = newPrefix();
  const backend = await open(prefix, { endpoint, addressing: 'virtualHost' });
  t.equal(await backend.create('keys/a', [Buffer.from('x')]), 'created');
  t.same([...asked], [`vault.${server.dnsName}`]);
  t.same(await listAll(await open(prefix), 'keys/'), [{ name: 'keys/a', sizeBytes: 1 }]);
});

void t.test('what is large goes in parts, is whole, and leaves none when it is ended', async (t) => {
  const limits = { multipartBytes: 6 * mebibyte, partBytes: 5 * mebibyte };
  const prefix = newPrefix();
  const backend = await open(prefix, { limits });
  const content = randomBytes(17 * mebibyte + 5);
  t.equal(await backend.create('packs/a', [content.subarray(0, 1000), content.subarray(1000)]), 'created');
  t.ok((await backend.read('packs/a'))?.equals(content));
  t.equal(await backend.size('packs/a'), content.length);
  t.equal(await backend.create('packs/a', [content]), 'exists');

  const stop = new AbortController();
  const reason = new Error('enough');
  const creation = backend.create('packs/b', [content], { signal: stop.signal });
  stop.abort(reason);
  await t.rejects(creation, reason);
  t.equal(await backend.read('packs/b'), null);
  t.equal(await backend.removeLeftovers(new Date(Date.now() + 3_600_000)), 0, 'it has taken its parts away');

  const racers = await Promise.all([1, 2, 3].map(async () => open(prefix, { limits })));
  const contents = racers.map(() => randomBytes(7 * mebibyte));
  const results = await Promise.all(
    racers.map(async (racer, index) => racer.create('packs/c', [contents[index] ?? Buffer.alloc(0)])),
  );
  const there = await backend.read('packs/c');
  const last = contents.findIndex((one) => there?.equals(one));
  t.equal(results[last], 'created', 'whose content stays, knows it');
  t.comment(`three that complete an upload of one name: ${results.join(', ')}`);
});

void t.test('keys and places that are wrong are told as what they are', async (t) => {
  const { accessKeyId } = server.credentials;
  const wrongSecret = await open(newPrefix(), { credentials: { accessKeyId, secretAccessKey: 'wrong' } });
  await t.rejects(wrongSecret.read('keys/a'), { code: 'STORAGE_DENIED', hint: /its secret/ });
  const wrongKey = await open(newPrefix(), { credentials: { accessKeyId: 'NOBODY', secretAccessKey: 'x' } });
  await t.rejects(wrongKey.create('keys/a', []), { code: 'STORAGE_DENIED', hint: /check the key NOBODY/ });
  const nowhere = await open(newPrefix(), { bucket: 'nowhere' });
  const noBucket = { code: 'STORAGE_UNREACHABLE', hint: /create the bucket nowhere/ };
  await t.rejects(nowhere.read('keys/a'), noBucket);
  await t.rejects(nowhere.size('keys/a'), noBucket);
  await t.rejects(nowhere.delete('keys/a'), noBucket);
  await t.rejects(listAll(nowhere, 'keys/'), noBucket);
  await t.rejects(nowhere.create('keys/a', [Buffer.from('x')]), noBucket);
});

void t.test('backups are written, read and verified, full and incremental', async (t) => {
  const prefix = newPrefix();
  const repository = await initTestRepository(await open(prefix));
  t.same(repository.config.capabilities, { createExclusive: true, consistentListing: true });
  const before = someVolume(40, 12_345);
  const { manifest: parent } = await backUp(repository, before);
  const after = Buffer.from(before);
  randomBytes(10).copy(after, 5 * testChunkBytes);
  const changes = [{ offsetBytes: 5 * testChunkBytes, lengthBytes: 10, zero: false }];
  const { manifest } = await backUp(repository, after, { parent, changes });

  const other = await Repository.open(await open(prefix), testSecret);
  t.same(await readManifest(other.context, manifest.id), manifest);
  t.ok((await readVolume(other, parent)).equals(before));
  t.ok((await readVolume(other, manifest)).equals(after));
  t.ok((await verifyRepository(other.context, await other.index(), { data: true })).ok);
});

void t.test('two hosts write at once through connections that break, and lose nothing', async (t) => {
  const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
  t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats the places of the cuts`);
  // A pack fits through about every third connection.
  await using proxy = await CuttingProxy.start(server.endpoint, { seed, bytesMax: 600_000 });
  const prefix = newPrefix();
  await initTestRepository(await open(prefix));
  const limits = { attemptsMax: 50, pauseMs: 1, pauseMsMax: 20 };
  const hosts = await Promise.all([1, 2].map(async () => open(prefix, { endpoint: proxy.endpoint, limits })));
  const volumes = new Map<string, Buffer>();
  await Promise.all(
    hosts.map(async (backend) => {
      for (let round = 0; round < 4; round++) {
        const volume = someVolume(12, 1000 + round);
        const { manifest } = await backUp(await Repository.open(backend, testSecret), volume);
        volumes.set(manifest.id, volume);
      }
    }),
  );
  t.comment(`${proxy.cuts} connections were cut`);
  t.ok(proxy.cuts > 10);
  const repository = await Repository.open(await open(prefix), testSecret);
  t.equal((await listBackups(repository.context)).length, volumes.size);
  for (const [id, volume] of volumes) {
    const manifest = await readManifest(repository.context, id);
    t.ok(manifest !== null && (await readVolume(repository, manifest)).equals(volume), id);
  }
  t.ok((await verifyRepository(repository.context, await repository.index(), { data: true })).ok);
});

/** Starts a radosgw, says where it is, and stays. */
const holder = `
  const { Radosgw } = await import(process.argv[1]);
  const { root, endpoint } = await Radosgw.start();
  console.log(JSON.stringify({ root, endpoint }));
  setInterval(() => undefined, 1000);`;

void t.test('the server of a test that is killed is gone, with its directory', async (t) => {
  const module = join(import.meta.dirname, '../lab/radosgw.ts');
  const child = spawn(process.execPath, ['--input-type=module', '-e', holder, module]);
  const [line] = z.tuple([z.instanceof(Buffer)]).parse(await once(child.stdout, 'data'));
  const { root, endpoint } = z
    .object({ root: z.string(), endpoint: z.string() })
    .parse(JSON.parse(String(line)));
  t.ok((await fetch(endpoint)).ok);
  child.kill('SIGKILL');
  await eventually(async () => !(await isThere(root)));
  await t.rejects(fetch(endpoint), { cause: { code: 'ECONNREFUSED' } });
});

async function isThere(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return false;
    throw error;
  }
}
