import { stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { loadConfig } from '../config/config.ts';
import { WeakS3 } from '../test/sim/weakS3.ts';
import { Repositories } from './repositories.ts';

interface Place {
  readonly server: WeakS3;
  readonly repositories: Repositories;
  /** What a host with the same key sees whose configuration locks nothing. */
  readonly others: Repositories;
  readonly keyFile: string;
}

/** A host whose configuration locks the backups in a bucket. */
async function placeFor(test: Test, options: { readonly isLocking: boolean }): Promise<Place> {
  const server = await WeakS3.start(options);
  test.teardown(async () => server.stop());
  const directory = test.testdir();
  const [keyFile, credentialsFile] = [join(directory, 'cloud.key'), join(directory, 'cloud.env')];
  await writeFile(credentialsFile, 'AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n', { mode: 0o600 });
  const place = { url: `s3://${server.bucketName}/backups`, endpoint: server.endpoint, credentialsFile };
  const repositoriesWith = async (
    objectLock: { readonly days: number } | undefined,
  ): Promise<Repositories> => {
    const cloud = { kind: 'repository', ...place, keyFile, objectLock };
    const file = join(directory, `config${objectLock?.days ?? 0}.yaml`);
    // JSON is YAML.
    await writeFile(file, JSON.stringify({ storages: { cloud } }), { mode: 0o600 });
    const { config } = await loadConfig(file, { optional: false });
    return new Repositories(config, file);
  };
  const repositories = await repositoriesWith({ days: 7 });
  return { server, repositories, others: await repositoriesWith(undefined), keyFile };
}

void t.test('storage init refuses a server that locks nothing, and leaves no key file', async (t) => {
  const { repositories, keyFile } = await placeFor(t, { isLocking: false });
  const made = repositories.init('cloud', { recoveryKey: false });
  await t.rejects(made, { code: 'OBJECT_LOCK_NOT_ENFORCED' });
  await t.rejects(stat(keyFile), { code: 'ENOENT' });
});

void t.test('storage check says when a server that has locked does not any more', async (t) => {
  const { server, repositories } = await placeFor(t, { isLocking: true });
  await repositories.init('cloud', { recoveryKey: true });
  t.match(await repositories.lock('cloud', {}), { problem: null, deletions: [] });
  server.bucket.versions.now = () => Date.now() + 365 * 24 * 3_600_000;
  t.match(await repositories.lock('cloud', {}), { problem: { code: 'OBJECT_LOCK_NOT_ENFORCED' } });
});

void t.test('a repair brings back what the repository is opened by, and a dry run says so', async (t) => {
  const { server, repositories } = await placeFor(t, { isLocking: true });
  await repositories.init('cloud', { recoveryKey: true });
  for (const key of server.bucket.objects.keys())
    if (/\/(config|keys)\//.test(key))
      server.bucket.act(
        { method: 'DELETE', key, query: new URLSearchParams(), headers: {}, body: Buffer.alloc(0) },
        false,
      );
  await t.rejects(repositories.contents('cloud'), { code: 'REPOSITORY_NOT_FOUND' });
  t.equal((await repositories.displaced('cloud', {})).length, 4, 'two configurations, two slots');
  const options = { data: false, isAlone: false };
  const dry = await repositories.repair('cloud', { ...options, apply: false });
  t.match(dry, { applied: false, kept: [{ reason: /--apply/ }] });
  t.equal(dry.steps.filter(({ action }) => action === 'bring-back').length, 4);
  const report = await repositories.repair('cloud', { ...options, apply: true });
  t.match(report, { applied: true, kept: [], touched: [] });
  t.match(await repositories.contents('cloud'), { packs: 0 });
});

void t.test('a host whose configuration does not fit to what is locked there is told', async (t) => {
  const { repositories, others } = await placeFor(t, { isLocking: true });
  await others.init('cloud', { recoveryKey: false });
  t.same(await others.differences('cloud'), []);
  t.match(await repositories.differences('cloud'), [/not locked so far: stillpoint storage check cloud/]);
  await repositories.lock('cloud', {});
  t.same(await repositories.differences('cloud'), []);
  t.match(await others.differences('cloud'), [/set objectLock/]);
});

void t.test('a host that is not told to lock tells what was deleted where others lock', async (t) => {
  const { server, repositories, others } = await placeFor(t, { isLocking: true });
  await repositories.init('cloud', { recoveryKey: true });
  const [key = ''] = [...server.bucket.objects.keys()].filter((name) => /\/config\/.*\.2$/.test(name));
  const query = new URLSearchParams();
  server.bucket.act({ method: 'DELETE', key, query, headers: {}, body: Buffer.alloc(0) }, false);
  t.equal((await others.displaced('cloud', {})).length, 1);
});
