import t, { type Test } from 'tap';
import { newId } from '../../common/ids.ts';
import { WeakS3 } from '../../test/sim/weakS3.ts';
import type { S3Request } from '../../test/sim/weakS3Bucket.ts';
import type { S3Backend } from '../backends/s3Backend.ts';
import { openTestBackend } from '../backends/s3Fixture.ts';
import { RepositoryStorage } from '../repositoryStorage/repositoryStorage.ts';
import { backupLockedUntil } from './backupLock.ts';
import { listBackups } from './backups.ts';
import { collect } from './collectionFixture.ts';
import { displacedObjects } from './displaced.ts';
import { lockedPrefixes } from './lockedStore.ts';
import { deletionName, manifestName } from './names.ts';
import { repairRepository } from './repair.ts';
import { Repository } from './repository.ts';
import { backUp, readVolume, someVolume, testChunkBytes, testSecret, testTime } from './repositoryFixture.ts';
import { type Retention, retentionOfDays } from './retention.ts';
import { bufferSource, writeStream } from './streamWriter.ts';
import { verifyRepository } from './verifyRepository.ts';

/* A repository whose store locks objects, with clocks of the test's own. */

const dayMs = 24 * 3_600_000;
const prefix = 'backups/of-us/';

class LockStage {
  readonly server: WeakS3;
  readonly backend: S3Backend;
  /** Of the server and of every host. */
  nowMs = Date.now();
  readonly retention: Retention;

  private constructor(server: WeakS3, backend: S3Backend, days: number) {
    this.server = server;
    this.backend = backend;
    this.retention = { ...retentionOfDays(days), now: () => this.nowMs };
    server.bucket.versions.now = () => this.nowMs;
  }

  /** Locks for eight days, with a slack of two. */
  static async open(t: Test): Promise<LockStage> {
    const server = await WeakS3.start({ isLocking: true });
    t.teardown(async () => server.stop());
    const stage = new LockStage(server, await openTestBackend(server), 8);
    await stage.init(stage.retention);
    return stage;
  }

  init(retention: Retention | undefined, backend = this.backend): Promise<Repository> {
    const sizes = { chunkSizeBytes: testChunkBytes, packSizeBytes: 256 * 1024 };
    const about = { secret: testSecret, label: 'test', createdAt: testTime };
    return Repository.init(backend, { ...about, ...sizes, retention });
  }

  repository(retention: Retention | null = this.retention): Promise<Repository> {
    return Repository.open(this.backend, testSecret, retention === null ? {} : { retention });
  }

  /** Names of all objects that a read finds. */
  names(below: string): readonly string[] {
    const keys = [...this.server.bucket.objects.keys()].filter((key) => key.startsWith(prefix + below));
    return keys.map((key) => key.slice(prefix.length)).toSorted();
  }

  /** In days from now. */
  daysLeft(name: string): number {
    const until = this.server.bucket.versions.of(prefix + name)[0]?.retainedUntil ?? null;
    return until === null ? 0 : (until.getTime() - this.nowMs) / dayMs;
  }

  /** As somebody does who has all rights to the bucket. */
  intrude(name: string, act: 'delete' | 'overwrite'): void {
    const request = { method: 'DELETE', key: prefix + name, query: new URLSearchParams(), headers: {} };
    if (act === 'delete') this.server.bucket.act({ ...request, body: Buffer.alloc(0) }, false);
    else this.server.bucket.plant(prefix + name, Buffer.from('rubbish'));
  }

  /** What a backup that came to nothing has left: packs that nobody needs. Returns their names. */
  async abandonedPacks(retention: Retention | null = this.retention): Promise<readonly string[]> {
    const before = new Set(this.names('packs/'));
    const repository = await this.repository(retention);
    const session = await repository.begin({ backupId: newId(), startedAt: testTime });
    await writeStream(bufferSource(someVolume(4)), session, { chunkSizeBytes: testChunkBytes });
    await session.flush();
    await session.abandon();
    return this.names('packs/').filter((name) => !before.has(name));
  }
}

const isExtension = ({ query }: S3Request): boolean => query.has('retention');

void t.test('where backups are to be locked and would not be, no repository is made', async (t) => {
  await using server = await WeakS3.start();
  const backend = await openTestBackend(server);
  const made = Repository.init(backend, {
    secret: testSecret,
    label: 'test',
    createdAt: testTime,
    retention: retentionOfDays(8),
  });
  await t.rejects(made, { code: 'OBJECT_LOCK_NOT_ENFORCED', hint: /objectLock/ });
  await t.rejects(Repository.open(backend, testSecret), { code: 'REPOSITORY_NOT_FOUND' });
});

void t.test(
  'everything that a backup is read from is locked for the whole period from its commit on',
  async (t) => {
    const stage = await LockStage.open(t);
    stage.nowMs += 5 * dayMs;
    const { manifest } = await backUp(await stage.repository(), someVolume(6));
    for (const below of ['config/', 'keys/', 'packs/', 'indexes/', 'manifests/'])
      t.ok(stage.names(below).length > 0, below);
    for (const name of lockedPrefixes.flatMap((below) => stage.names(below)))
      t.ok(stage.daysLeft(name) >= 8, `${name}: ${stage.daysLeft(name)}`);
    t.ok(stage.daysLeft(manifestName(manifest.id)) < 8.1, 'and a backup itself no longer than that');
  },
);

void t.test('what is reused is locked for longer before the commit, and not by each backup', async (t) => {
  const stage = await LockStage.open(t);
  const volume = someVolume(6);
  await backUp(await stage.repository(), volume);
  const extensions: number[] = [];
  for (let day = 1; day <= 8; day++) {
    stage.nowMs += dayMs;
    stage.server.requests.length = 0;
    const { manifest } = await backUp(await stage.repository(), volume);
    const { requests } = stage.server;
    const commit = requests.findIndex(
      ({ method, key }) => method === 'PUT' && key === prefix + manifestName(manifest.id),
    );
    t.ok(requests.findLastIndex(isExtension) < commit, 'before the commit');
    extensions.push(requests.filter(isExtension).length);
    for (const name of stage.names('packs/')) t.ok(stage.daysLeft(name) >= 8, `day ${day}: ${name}`);
  }
  const without = extensions.filter((count) => count === 0).length;
  t.ok(without >= 4, `extensions of each day: ${extensions.join(' ')}`);
});

void t.test(
  'nothing is committed where the server says that it keeps something longer, and does not',
  async (t) => {
    const stage = await LockStage.open(t);
    const volume = someVolume(6);
    await backUp(await stage.repository(), volume);
    stage.nowMs += 5 * dayMs;
    stage.server.intervene({ when: isExtension, fault: { status: 200 }, times: 1000 });
    await t.rejects(backUp(await stage.repository(), volume), { code: 'OBJECT_LOCK_NOT_ENFORCED' });
    t.equal(stage.names('manifests/').length, 1);
  },
);

void t.test('a backup that is locked is not deleted, and says until when; afterwards it is', async (t) => {
  const stage = await LockStage.open(t);
  await backUp(await stage.repository(), someVolume(2));
  const storage = new RepositoryStorage({
    name: 'vault',
    location: 'here',
    open: () => stage.repository(),
    room: () => Promise.resolve(null),
  });
  const [entry] = await storage.list();
  if (entry === undefined) throw new Error('there is no backup');
  const until = entry.lockedUntil ?? '';
  t.equal(Math.round((new Date(until).getTime() - stage.nowMs) / dayMs), 8);
  await t.rejects(storage.delete(entry), { code: 'BACKUP_LOCKED', message: until });
  t.same(stage.names('deletions/'), [], 'nothing was begun');
  stage.nowMs += 8.1 * dayMs;
  t.match(await storage.list(), [{ lockedUntil: null }]);
  await storage.delete(entry);
  t.same(await storage.list(), []);
  t.same(stage.names('manifests/'), []);
});

void t.test('a backup whose fence somebody has deleted is locked by the attempt behind it', async (t) => {
  const stage = await LockStage.open(t);
  const id = newId();
  const repository = await stage.repository();
  await (await repository.begin({ backupId: id, startedAt: testTime, afterFence: true })).abandon();
  await backUp(repository, someVolume(2), { id, afterFence: true });
  stage.intrude(manifestName(id, 1), 'delete');
  t.not(await backupLockedUntil(repository.context, id), null);
});

void t.test('a collection leaves packs that are locked, says until when, and comes back', async (t) => {
  const stage = await LockStage.open(t);
  const volume = someVolume(4);
  const { manifest } = await backUp(await stage.repository(), volume);
  const packs = await stage.abandonedPacks();
  const first = await collect(await stage.repository());
  t.match(first, { packsDeleted: 0, packsLocked: packs.length, lockedUntil: String });
  t.equal(Math.round((new Date(first.lockedUntil ?? '').getTime() - stage.nowMs) / dayMs), 10);
  t.same(
    packs.filter((name) => !stage.names('packs/').includes(name)),
    [],
  );
  stage.nowMs += 10.1 * dayMs;
  t.match(await collect(await stage.repository()), { packsDeleted: packs.length, packsLocked: 0 });
  for (const name of packs) t.same(stage.server.bucket.versions.of(prefix + name), [], 'no version is left');
  const repository = await stage.repository();
  t.ok((await readVolume(repository, manifest)).equals(volume));
});

void t.test('packs that are locked after they were condemned stay, and stay in the indexes', async (t) => {
  const stage = await LockStage.open(t);
  // By a host that locks nothing.
  const packs = await stage.abandonedPacks(null);
  await (await stage.repository()).begin({ backupId: newId(), startedAt: testTime });
  const until = new Date(stage.nowMs + 9 * dayMs);
  const report = await collect(await stage.repository(), {
    onOpenSession: async () => {
      // A backup that reuses them, and comes to nothing.
      for (const name of packs) await stage.backend.objectLock.retain(name, until);
      return 'fence';
    },
  });
  t.match(report, { packsDeleted: 0, packsLocked: packs.length });
  const index = await (await stage.repository()).index();
  t.equal(index.packs.length, packs.length);
  stage.nowMs += 9.1 * dayMs;
  t.match(await collect(await stage.repository()), { packsDeleted: packs.length });
});

void t.test('a host that locks nothing itself respects what others have locked', async (t) => {
  const stage = await LockStage.open(t);
  await backUp(await stage.repository(), someVolume(4));
  const { context } = await stage.repository(null);
  for (const name of lockedPrefixes.flatMap((below) => stage.names(below)))
    await t.rejects(context.backend.delete(name), { code: 'OBJECT_LOCKED' }, name);
  await backUp(await stage.repository(null), someVolume(4));
});

void t.test('whatever somebody deletes or overwrites is found without a key, and brought back', async (t) => {
  const stage = await LockStage.open(t);
  const volume = someVolume(6);
  const { manifest } = await backUp(await stage.repository(), volume);
  const names = lockedPrefixes.flatMap((below) => stage.names(below));
  for (const [number, name] of names.entries())
    stage.intrude(name, number % 3 === 0 ? 'overwrite' : 'delete');
  await t.rejects(stage.repository(), { code: /REPOSITORY_/ });
  const displaced = await displacedObjects(stage.backend);
  t.same(displaced.map(({ name }) => name).toSorted(), names.toSorted());
  for (const object of displaced) await stage.backend.objectLock.bringBack(object);
  t.same(await displacedObjects(stage.backend), []);
  const repository = await stage.repository();
  t.ok((await readVolume(repository, manifest)).equals(volume));
  t.ok((await verifyRepository(repository.context, await repository.index(), { data: true })).ok);
});

void t.test(
  'a deletion of a backup that is locked is undone by a repair, also one that is locked itself',
  async (t) => {
    const stage = await LockStage.open(t);
    const { manifest } = await backUp(await stage.repository(), someVolume(2));
    const retainUntil = new Date(stage.nowMs + 1000 * dayMs);
    await stage.backend.create(deletionName(manifest.id), [Buffer.from('gone')], { retainUntil });
    t.same(await listBackups((await stage.repository()).context), []);
    t.match(await collect(await stage.repository()), { packsDeleted: 0 }, 'what it needs is locked, too');
    const repair = async (apply: boolean) =>
      repairRepository(await stage.repository(), {
        data: false,
        apply,
        at: testTime,
        packSizeBytes: 256 * 1024,
        isAlone: false,
      });
    t.match(await repair(false), { steps: [{ action: 'set-aside', name: deletionName(manifest.id) }] });
    t.same(await listBackups((await stage.repository()).context), [], 'a dry run does nothing');
    t.match(await repair(true), { applied: true, steps: [{ action: 'set-aside' }] });
    t.match(await listBackups((await stage.repository()).context), [{ id: manifest.id, problem: null }]);
    t.same((await repair(true)).steps, [], 'nothing is left to do');
  },
);

void t.test(
  'a repository that was made without a lock gets it when the store is seen to have one',
  async (t) => {
    const stage = await LockStage.open(t);
    const backend = await openTestBackend(stage.server, { prefix: 'another' });
    await stage.init(undefined, backend);
    const { retention } = stage;
    const repository = await Repository.open(backend, testSecret, { retention });
    await t.rejects(backUp(repository, someVolume(2)), {
      code: 'OBJECT_LOCK_NOT_ENFORCED',
      hint: /storage check/,
    });
    t.equal(await repository.findLock(), true);
    const found = await Repository.open(backend, testSecret, { retention });
    t.match(found.config, { revision: 2, capabilities: { objectLock: true } });
    const { manifest } = await backUp(found, someVolume(2));
    await t.rejects(found.context.backend.delete(manifestName(manifest.id)), { code: 'OBJECT_LOCKED' });
  },
);
