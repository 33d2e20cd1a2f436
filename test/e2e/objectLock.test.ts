import { S3 } from '@aws-sdk/client-s3';
import t from 'tap';
import { listAll } from '../../storage/backends/backend.ts';
import { S3Backend } from '../../storage/backends/s3Backend.ts';
import { displacedObjects } from '../../storage/repository/displaced.ts';
import { lockedPrefixes } from '../../storage/repository/lockedStore.ts';
import { Repository } from '../../storage/repository/repository.ts';
import {
  backUp,
  readVolume,
  someVolume,
  testSecret,
  testTime,
} from '../../storage/repository/repositoryFixture.ts';
import { retentionOfDays } from '../../storage/repository/retention.ts';
import { verifyRepository } from '../../storage/repository/verifyRepository.ts';
import { type Intruder, objectLockConformance } from '../conformance/objectLock.ts';
import { Radosgw } from '../lab/radosgw.ts';

/* Object lock on a real server. Its objects are in memory and go with it, locked or not. */

const server = await Radosgw.start();
t.teardown(async () => server.stop());
await server.createBucket('locked', { objectLock: true });
await server.createBucket('open');
const { endpoint, credentials } = server;
const s3 = new S3({ endpoint, credentials, region: 'us-east-1', forcePathStyle: true });
t.teardown(() => s3.destroy());
let prefixes = 0;

/** Places of their own in the bucket. */
function newPrefix(): string {
  prefixes++;
  return `tests/${prefixes}`;
}

function open(prefix: string, bucket = 'locked'): Promise<S3Backend> {
  return S3Backend.open({ endpoint, credentials, bucket, prefix });
}

/** Somebody with the same rights, and the library of the server's maker. */
function intruderIn(prefix: string): Intruder {
  const at = (name: string) => ({ Bucket: 'locked', Key: `${prefix}/${name}` });
  return {
    delete: async (name) => void (await s3.deleteObject(at(name))),
    overwrite: async (name, content) => void (await s3.putObject({ ...at(name), Body: content })),
    purge: async (name) => {
      const { Key } = at(name);
      const listed = await s3.listObjectVersions({ Bucket: 'locked', Prefix: Key });
      const versions = (listed.Versions ?? []).filter((version) => version.Key === Key);
      const results = await Promise.allSettled(
        versions.map(async ({ VersionId }) => s3.deleteObject({ ...at(name), VersionId })),
      );
      return results.filter(({ status }) => status === 'rejected').length;
    },
  };
}

void t.test('radosgw locks objects', async (t) => {
  await objectLockConformance(t, async () => {
    const prefix = newPrefix();
    return { backend: await open(prefix), intruder: intruderIn(prefix) };
  });
});

void t.test('a bucket that was made without object lock is found out', async (t) => {
  const backend = await open(newPrefix(), 'open');
  t.equal(await backend.objectLock.isEnforced(), false);
  const retention = retentionOfDays(1);
  const options = { secret: testSecret, label: 'test', createdAt: testTime, retention };
  await t.rejects(Repository.init(backend, options), { code: 'OBJECT_LOCK_NOT_ENFORCED' });
});

void t.test('a repository survives whoever deletes and overwrites all of it', async (t) => {
  const prefix = newPrefix();
  const backend = await open(prefix);
  const retention = retentionOfDays(2);
  const options = { secret: testSecret, label: 'test', createdAt: testTime, chunkSizeBytes: 64 * 1024 };
  const made = await Repository.init(backend, { ...options, retention });
  const volume = someVolume(12, 1000);
  const { manifest } = await backUp(made, volume);
  await backUp(await Repository.open(await open(prefix), testSecret, { retention }), volume);

  const intruder = intruderIn(prefix);
  let count = 0;
  for (const below of lockedPrefixes)
    for (const { name } of await listAll(backend, below)) {
      t.ok((await intruder.purge(name)) > 0, `${name} cannot be purged`);
      await (count % 2 === 0 ? intruder.delete(name) : intruder.overwrite(name, 'rubbish'));
      count++;
    }
  await t.rejects(Repository.open(await open(prefix), testSecret), { code: /REPOSITORY_/ });
  const displaced = await displacedObjects(backend);
  t.equal(displaced.length, count);
  for (const object of displaced) await backend.objectLock.bringBack(object);
  const repository = await Repository.open(await open(prefix), testSecret, { retention });
  t.ok((await readVolume(repository, manifest)).equals(volume));
  t.ok((await verifyRepository(repository.context, await repository.index(), { data: true })).ok);
});
