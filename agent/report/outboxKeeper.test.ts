import { rm, stat } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';
import { Writable } from 'node:stream';

import t, { type Test } from 'tap';

import { createLogger } from '../../common/log.ts';
import { alert, outboxFor, waiting } from '../../test/sim/reports.ts';
import { OutboxKeeper } from './outboxKeeper.ts';

async function keeperFor(test: Test) {
  const { path } = await outboxFor(test);
  const said: string[] = [];
  const destination = new Writable({
    write: (line: Buffer, _, done) => {
      said.push(String(line));
      done();
    },
  });
  const log = createLogger({ destination, level: 'info' });
  const noted: number[] = [];
  const onNoted = (): void => void noted.push(1);
  const keeper = new OutboxKeeper(path, { maxBytes: 2 ** 20 }, { log, onNoted });
  test.teardown(() => keeper[Symbol.dispose]());
  return { path, keeper, said, noted };
}

void t.test('an outbox whose file is removed while it is open goes on in a new one', async (t) => {
  const { path, keeper, noted } = await keeperFor(t);
  keeper.note({ reports: [alert('a')] });
  const { generation } = keeper.outbox.state;
  await rm(path);
  keeper.note({ reports: [alert('b'), alert('c')] });
  t.ok((await stat(path)).size > 0, 'what is noted is in a file again');
  t.not(keeper.outbox.state.generation, generation);
  t.same(waiting(keeper.outbox), ['1 alert', '2 alert']);
  t.equal(noted.length, 2);
});

void t.test(
  'an outbox that turns out to be damaged is told, set aside, and goes on in a new one',
  async (t) => {
    const { path, keeper, said } = await keeperFor(t);
    keeper.note({ reports: [alert('a')] });
    const other = new DatabaseSync(path);
    other.exec(`UPDATE reports SET content = x'ffff'`);
    other.close();
    t.throws(() => keeper.outbox.pending(0, { count: 1, bytes: 1 }), { code: 'OUTBOX_DAMAGED' });
    keeper.note({ reports: [alert('b')] });
    t.equal(keeper.outbox.state.reason, 'damaged');
    t.ok(said.some((line) => line.includes('damaged and set aside')));
    t.ok((await stat(`${path}.damaged`)).size > 0);
  },
);

void t.test('after its end nothing opens it again', async (t) => {
  const { keeper } = await keeperFor(t);
  keeper[Symbol.dispose]();
  t.throws(() => keeper.outbox, { code: 'OUTBOX_UNUSABLE', message: /closed/ });
});
