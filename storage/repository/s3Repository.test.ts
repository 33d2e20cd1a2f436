import { randomInt } from 'node:crypto';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { randomFrom } from '../../test/sim/objectStore.ts';
import { WeakS3 } from '../../test/sim/weakS3.ts';
import { listAll } from '../backends/backend.ts';
import { openTestBackend } from '../backends/s3Fixture.ts';
import { StorageError } from '../errors.ts';
import { listBackups, readManifest } from './backups.ts';
import { probeCapabilities } from './probe.ts';
import { Repository } from './repository.ts';
import { backUp, initTestRepository, readVolume, someVolume, testSecret } from './repositoryFixture.ts';
import { verifyRepository } from './verifyRepository.ts';

void t.test(
  'a repository says whether its S3 server creates exclusively, as it was seen to do',
  async (t) => {
    for (const conditions of ['honoured', 'ignored', 'refused'] as const) {
      await using server = await WeakS3.start({ conditions });
      // One request at a time: those who race do not even meet.
      const backend = await openTestBackend(server, { limits: { concurrency: 1 } });
      const { config } = await initTestRepository(backend);
      t.equal(config.capabilities.createExclusive, conditions === 'honoured', conditions);
      t.equal(config.capabilities.consistentListing, true);
      const left = (await listAll(backend, 'probe/')).map(({ name }) => name);
      t.same(left, conditions === 'refused' ? [] : ['probe/create-exclusive'], 'for the next one who asks');
    }
  },
);

void t.test('nothing is written once the server has lost what the repository relies on', async (t) => {
  await using server = await WeakS3.start();
  const volume = someVolume(3);
  const { manifest } = await backUp(await initTestRepository(await openTestBackend(server)), volume);
  await using weaker = await WeakS3.start({ conditions: 'ignored' });
  for (const [key, { bytes }] of server.bucket.objects) weaker.bucket.plant(key, bytes);
  const repository = await Repository.open(await openTestBackend(weaker), testSecret);
  await t.rejects(backUp(repository, volume), { code: 'STORE_WEAKENED', hint: /reading is safe/ });
  t.ok((await readVolume(repository, manifest)).equals(volume));
});

void t.test('a listing that is stale is noticed', async (t) => {
  await using server = await WeakS3.start({ rates: { staleListing: 1 } });
  const capabilities = await probeCapabilities(await openTestBackend(server));
  t.same(capabilities, { createExclusive: true, consistentListing: false });
});

void t.test('a lost connection during the probe does not make a good server a weak one', async (t) => {
  for (const fault of ['cutBefore', 'cutAfter', 'unavailable', 'failedAfter', 'conflict'] as const) {
    await using server = await WeakS3.start();
    const isRace = ({ method, key }: { method: string; key: string }): boolean =>
      method === 'PUT' && key.includes('/probe/') && !key.endsWith('-exclusive');
    server.intervene({ when: isRace, fault, times: 3 });
    const capabilities = await probeCapabilities(await openTestBackend(server));
    t.same(capabilities, { createExclusive: true, consistentListing: true }, fault);
  }
});

void t.test('through failing requests every backup that was acknowledged is read as it was', async (t) => {
  const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
  t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats its faults`);
  const random = randomFrom(seed);
  for (const conditions of ['honoured', 'ignored'] as const) {
    const rates = {
      cutBefore: 0.04,
      cutAfter: 0.04,
      unavailable: 0.04,
      failedAfter: 0.04,
      conflict: 0.02,
      cutBody: 0.04,
      shortBody: 0.04,
      brokenXml: 0.1,
    };
    await using server = await WeakS3.start({ conditions, seed });
    // So few attempts that calls fail for good, too; packs go in parts.
    const backend = await openTestBackend(server, { limits: { attemptsMax: 4, multipartBytes: 200_000 } });
    await initTestRepository(backend);
    server.rates = rates;
    const volumes = new Map<string, Buffer>();
    for (let round = 0; round < 5; round++) {
      const volume = someVolume(5, Math.floor(random() * 60_000) + 1);
      const id = newId();
      const { manifest } = await persist(async () =>
        backUp(await Repository.open(backend, testSecret), volume, { id }),
      );
      volumes.set(manifest.id, volume);
    }
    server.rates = {};
    const repository = await Repository.open(backend, testSecret);
    t.equal((await listBackups(repository.context)).length, volumes.size);
    for (const [id, volume] of volumes) {
      const manifest = await readManifest(repository.context, id);
      t.ok(manifest !== null && (await readVolume(repository, manifest)).equals(volume), id);
    }
    t.ok((await verifyRepository(repository.context, await repository.index(), { data: true })).ok);
  }
});

/** Does it again as long as the storage fails in a way that can pass. */
async function persist<T>(work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof StorageError) || !error.retryable) throw error;
    }
  }
}
