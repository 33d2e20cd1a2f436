import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { leftOutRemark } from '../cli/commands/replicate.ts';
import { DirectoryStorage } from '../storage/directory/directoryStorage.ts';
import { placeFor, someVolume, store } from '../storage/repositoryStorage/fixture.ts';
import { copyBackup } from './replication.ts';
import { planWished } from './wishedCopies.ts';

void t.test('what is left out for its age is counted, and a name that nobody knows is refused', async (t) => {
  const from = await placeFor(t);
  const root = join(from.directory, 'plain');
  await mkdir(root);
  const to = new DirectoryStorage({ name: 'plain', path: root });
  const first = await store(from, someVolume(), { time: '2026-11-22T10:00:00.000Z' });
  const second = await store(from, someVolume(), { time: '2026-11-22T11:00:00.000Z' });
  await copyBackup(
    from.storage,
    to,
    { entry: second.entry, parent: null },
    {
      signal: new AbortController().signal,
      runDirectory: join(from.directory, 'run'),
      onProgress: () => undefined,
      onLeftOpen: (error) => t.error(error),
    },
  );
  const request = { machines: [], sources: [from.storage], to, older: false };
  t.match(await planWished(request), { copies: [], leftOut: 1 });
  t.match(await planWished({ ...request, older: true }), {
    copies: [{ entry: { id: first.entry.id } }],
    leftOut: 0,
  });
  const { name } = first.entry.machine;
  t.match(await planWished({ ...request, machines: [name] }), { copies: [], leftOut: 1 });
  await t.rejects(planWished({ ...request, machines: ['nosuch'] }), {
    code: 'MACHINE_NOT_FOUND',
    message: 'there is no backup of a machine nosuch in vault, plain',
  });
  const id = first.entry.id ?? '';
  await t.rejects(planWished({ ...request, machines: [id.slice(0, 8)] }), {
    code: 'MACHINE_NOT_FOUND',
    message: /is a backup/,
    hint: `name its machine: ${name}`,
  });
});

void t.test('a copy says that all is there only where nothing is left out', (t) => {
  const words = { machines: ['web-1'], from: 'standby', to: 'vault' };
  t.equal(
    leftOutRemark({ ...words, copies: 0, leftOut: 0 }),
    'vault has every backup that it should get from standby',
  );
  t.equal(leftOutRemark({ ...words, copies: 2, leftOut: 0 }), null);
  t.equal(
    leftOutRemark({ ...words, copies: 0, leftOut: 2 }),
    '2 backups of standby are not in vault and not copied, because they are older than the newest one there: pruned there, or never copied. To copy them: stillpoint replicate web-1 --from standby --to vault --older',
  );
  t.match(leftOutRemark({ ...words, copies: 2, leftOut: 1 }), /^1 backup of standby is not in vault/);
  t.end();
});
