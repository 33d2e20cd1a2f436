import { randomBytes } from 'node:crypto';
import { rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { loadConfig } from '../config/config.ts';
import { Repositories } from './repositories.ts';

interface Place {
  readonly repositories: Repositories;
  readonly keyFile: string;
}

async function placeFor(test: Test): Promise<Place> {
  const directory = test.testdir();
  const keyFile = join(directory, 'vault.key');
  const vault = { kind: 'repository', url: `file://${join(directory, 'vault')}`, keyFile };
  const file = join(directory, 'config.yaml');
  // JSON is YAML.
  await writeFile(file, JSON.stringify({ storages: { vault } }), { mode: 0o600 });
  const { config } = await loadConfig(file, { optional: false });
  return { repositories: new Repositories(config, file), keyFile };
}

void t.test('who has lost the key file opens the repository again with the recovery key', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  const { recoveryKey } = await repositories.init('vault', { recoveryKey: true });
  await rm(keyFile);
  await t.rejects(repositories.contents('vault'), { code: 'KEY_WRONG', hint: /storage keys NAME --recover/ });
  await t.rejects(repositories.recover('vault', 'ABCD-EFGH'), { code: 'KEY_WRONG' });
  await t.rejects(stat(keyFile), { code: 'ENOENT' }, 'a wrong one makes nothing');
  await repositories.recover('vault', (recoveryKey ?? '').toLowerCase());
  t.match(await repositories.contents('vault'), { packs: 0 });
  t.equal((await stat(keyFile)).mode & 0o777, 0o600);
});

void t.test('a key file that opens something else is let in with the recovery key, and kept', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  const { recoveryKey } = await repositories.init('vault', { recoveryKey: true });
  await writeFile(keyFile, randomBytes(32).toString('hex'));
  await t.rejects(repositories.contents('vault'), { code: 'KEY_WRONG', hint: /--recover/ });
  await repositories.recover('vault', recoveryKey ?? '');
  t.match(await repositories.contents('vault'), { packs: 0 });
});

void t.test('a key file that was cut short is named, and nobody is told to fill it anew', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  await repositories.init('vault', { recoveryKey: false });
  await writeFile(keyFile, 'abc');
  const error: unknown = await repositories.contents('vault').catch((thrown: unknown) => thrown);
  t.match(error, { code: 'KEY_WRONG', message: new RegExp(keyFile), hint: /copy of it/ });
  t.notMatch(error, { hint: /openssl/ });
});
