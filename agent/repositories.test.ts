import { randomBytes } from 'node:crypto';
import { rm, stat, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { newId } from '../common/ids.ts';
import { loadConfig } from '../config/config.ts';
import { FileBackend } from '../storage/backends/fileBackend.ts';
import { readKeyFile } from '../storage/repository/keyFile.ts';
import type { Secret } from '../storage/repository/keySlot.ts';
import { manifestName, sessionName } from '../storage/repository/names.ts';
import { putObject } from '../storage/repository/objects.ts';
import { parseRecoveryKey } from '../storage/repository/recoveryKey.ts';
import { Repository } from '../storage/repository/repository.ts';
import { thisSessionOwner } from '../storage/repository/sessionOwner.ts';
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

function recoverySecret(printed: string | null): Secret {
  return { kind: 'recovery', key: parseRecoveryKey(printed ?? '') };
}

void t.test('who has lost the key file opens the repository again with the recovery key', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  const { recoveryKey } = await repositories.init('vault', { recoveryKey: true });
  await rm(keyFile);
  await t.rejects(repositories.contents('vault'), {
    code: 'KEY_WRONG',
    hint: /storage keys vault --recover/,
  });
  await t.rejects(repositories.keys.recover('vault', { kind: 'recovery', key: randomBytes(32) }, {}), {
    code: 'KEY_WRONG',
  });
  await t.rejects(stat(keyFile), { code: 'ENOENT' }, 'a wrong one makes nothing');
  const recovered = await repositories.keys.recover('vault', recoverySecret(recoveryKey), {});
  const slots = (await repositories.keys.list('vault')).filter(({ slot }) => slot?.kind === 'keyFile');
  t.match(recovered, { keyFile, keyFileMade: true });
  t.same(
    new Set([recovered.slotId, ...recovered.lostSlotIds]),
    new Set(slots.map(({ slotId }) => slotId)),
    'and the key that was lost is named: it opens the repository until its slot is removed',
  );
  t.equal(recovered.lostSlotIds.length, 1);
  t.match(await repositories.contents('vault'), { packs: 0 });
  t.equal((await stat(keyFile)).mode & 0o777, 0o600);
});

void t.test('a key file that opens something else is let in with the recovery key, and kept', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  const { recoveryKey } = await repositories.init('vault', { recoveryKey: true });
  await writeFile(keyFile, randomBytes(32).toString('hex'));
  await t.rejects(repositories.contents('vault'), { code: 'KEY_WRONG', hint: /--recover/ });
  t.match(await repositories.keys.recover('vault', recoverySecret(recoveryKey), {}), {
    keyFile,
    keyFileMade: false,
  });
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

void t.test('a key slot that is damaged hides no other, and can be removed', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  await repositories.init('vault', { recoveryKey: true });
  const recovery = (await repositories.keys.list('vault')).find(({ slot }) => slot?.kind === 'recovery');
  const slotId = recovery?.slotId ?? '';
  await writeFile(join(dirname(keyFile), 'vault', 'keys', slotId), 'rubbish');
  const slots = await repositories.keys.list('vault');
  t.same(new Set(slots.map(({ slot }) => slot?.kind ?? null)), new Set(['keyFile', null]));
  t.match(
    slots.find((slot) => slot.slotId === slotId),
    { slot: null, problem: /damaged/ },
  );
  const whole = slots.find(({ slot }) => slot !== null)?.slotId ?? '';
  const last = repositories.keys.remove('vault', whole, { force: true });
  await t.rejects(last, { code: 'KEY_SLOT_LAST' }, 'a damaged one is no other way in');
  await repositories.keys.remove('vault', slotId, { force: false });
  t.equal((await repositories.keys.list('vault')).length, 1);
});

void t.test('the slot that this host uses goes only when that is meant', async (t) => {
  const { repositories } = await placeFor(t);
  await repositories.init('vault', { recoveryKey: true });
  const own =
    (await repositories.keys.list('vault')).find(({ slot }) => slot?.kind === 'keyFile')?.slotId ?? '';
  const refused = repositories.keys.remove('vault', own, { force: false });
  await t.rejects(refused, { code: 'KEY_SLOT_IN_USE', hint: new RegExp(`--remove ${own} --force`) });
  await repositories.keys.remove('vault', own, { force: true });
  await t.rejects(repositories.contents('vault'), { code: 'KEY_WRONG' });
});

void t.test('a passphrase opens the repository again, however its accents were typed', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  await repositories.init('vault', { recoveryKey: false });
  await repositories.keys.addPassphrase('vault', 'twelve gar\u00e7ons');
  await rm(keyFile);
  const wrong = { kind: 'passphrase', passphrase: 'twelve garcons' } as const;
  await t.rejects(repositories.keys.recover('vault', wrong, {}), { code: 'KEY_WRONG' });
  await repositories.keys.recover('vault', { kind: 'passphrase', passphrase: 'twelve garc\u0327ons' }, {});
  t.match(await repositories.contents('vault'), { packs: 0 });
});

void t.test('after a rotation only this host and a new recovery key open the repository', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  const { recoveryKey: first } = await repositories.init('vault', { recoveryKey: true });
  const second = join(dirname(keyFile), 'second.key');
  await repositories.keys.addFile('vault', second, {});
  const { generation, closed, recoveryKey } = await repositories.keys.rotate('vault');
  t.equal(generation, 2);
  t.same(
    closed.map(({ slot }) => slot?.kind ?? '').toSorted(),
    ['keyFile', 'recovery'],
    'and who is shut out is named, but for this host',
  );
  t.match(await repositories.contents('vault'), { packs: 0 });
  const kinds = (await repositories.keys.list('vault')).map(({ slot }) => slot?.kind ?? '').toSorted();
  t.same(kinds, ['keyFile', 'recovery']);
  const place = new FileBackend(join(dirname(keyFile), 'vault'));
  await t.rejects(Repository.open(place, await readKeyFile(second)), { code: 'KEY_WRONG' });
  await t.rejects(repositories.keys.recover('vault', recoverySecret(first), {}), { code: 'KEY_WRONG' });
  await rm(keyFile);
  await repositories.keys.recover('vault', recoverySecret(recoveryKey), {});
  t.match(await repositories.contents('vault'), { packs: 0 });
});

void t.test('a rotation makes no recovery key where there was none', async (t) => {
  const { repositories } = await placeFor(t);
  await repositories.init('vault', { recoveryKey: false });
  t.match(await repositories.keys.rotate('vault'), { generation: 2, closed: [], recoveryKey: null });
});

void t.test('a collection does not wait for a copy of this host whose process was killed', async (t) => {
  const { repositories, keyFile } = await placeFor(t);
  await repositories.init('vault', { recoveryKey: false });
  const place = new FileBackend(join(dirname(keyFile), 'vault'));
  const { context } = await Repository.open(place, await readKeyFile(keyFile));
  const announce = async (processId: number): Promise<string> => {
    const backupId = newId();
    const owner = thisSessionOwner();
    const startedAt = new Date().toISOString();
    const session = {
      formatVersion: 1,
      backupId,
      jobId: backupId,
      host: hostname(),
      processId,
      owner,
      startedAt,
    };
    await putObject(context, 'session', sessionName(backupId), Buffer.from(JSON.stringify(session)));
    return backupId;
  };
  const [dead, living] = [await announce(2 ** 22 + 1), await announce(process.pid)];
  const { fencedBackups } = await repositories.collect('vault', { fence: false, repackBelow: 0 });
  t.same(fencedBackups, [dead]);
  t.equal(await place.size(sessionName(dead)), null);
  t.not(await place.size(manifestName(dead)), null, 'who comes back late cannot commit it');
  t.not(await place.size(sessionName(living)), null);
  t.equal(await place.size(manifestName(living)), null);
});
