import { readdir, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { configSchema } from '../config/schema.ts';
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

void t.test('a repository without its key says so, and what makes it', async (t) => {
  const config = configSchema.parse({
    storages: {
      vault: { kind: 'repository', url: `file://${t.testdir()}/vault`, keyFile: `${t.testdirName}/key` },
    },
  });
  t.match(await storagesOf(config).get('vault')?.check(), {
    ok: false,
    problem: { code: 'KEY_WRONG', hint: /stillpoint storage init/ },
  });
});
