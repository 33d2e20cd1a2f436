import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { open as openFile, readFile, rename, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';

import t from 'tap';

import { alert, machine, outboxFor, waiting } from '../../test/sim/reports.ts';
import { Outbox } from './outbox.ts';

const reportBytes = 400;

void t.test('what a call noted is there after the process was killed, in its order', async (t) => {
  const { path, open } = await outboxFor(t);
  const script = `
    const { Outbox } = await import(${JSON.stringify(new URL('outbox.ts', import.meta.url).href)});
    const { alert } = await import(${JSON.stringify(new URL('../../test/sim/reports.ts', import.meta.url).href)});
    const outbox = new Outbox(${JSON.stringify(path)}, { maxBytes: 1e9 });
    for (const key of ['a', 'b']) outbox.note({ reports: [alert(key)], cursor: { name: 'c', value: key } });
    process.kill(process.pid, 'SIGKILL');`;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], { timeout: 30_000 });
  t.equal(child.signal, 'SIGKILL', child.stderr.toString());
  const outbox = open();
  t.same(waiting(outbox), ['1 alert', '2 alert']);
  t.equal(outbox.cursor('c'), 'b');
  t.equal(outbox.state.reason, 'no-outbox');
  const database = new DatabaseSync(path);
  t.equal(database.prepare('PRAGMA journal_mode').get()?.['journal_mode'], 'wal');
  database.close();
});

void t.test('a report is noted with how far its source was read, or not at all', async (t) => {
  const { path, open } = await outboxFor(t);
  const outbox = open();
  const other = new DatabaseSync(path);
  other.exec("CREATE TRIGGER full BEFORE INSERT ON cursors BEGIN SELECT RAISE(ABORT, 'disk is full'); END");
  t.throws(() => outbox.note({ reports: [alert('a')], cursor: { name: 'jobs', value: 1 } }), {
    code: 'OUTBOX_UNUSABLE',
    message: /disk is full/,
    retryable: true,
  });
  t.same(waiting(outbox), []);
  other.exec('DROP TRIGGER full');
  other.close();
  outbox.note({ reports: [alert('a')], cursor: { name: 'jobs', value: 1 } });
  t.same(waiting(outbox), ['1 alert'], 'and no number is left out');
  t.equal(outbox.cursor('jobs'), 1);
});

void t.test('what is acknowledged goes, and each report names the one before it', async (t) => {
  const { open } = await outboxFor(t);
  const outbox = open();
  outbox.note({ reports: ['a', 'b', 'c', 'd'].map((key) => alert(key)) });
  const namesOf = (after: number) =>
    outbox
      .pending(after, { count: 2, bytes: 2 ** 20 })
      .map(({ report }) => [report.sequence, report.previousSequence]);
  t.same(namesOf(0), [
    [1n, 0n],
    [2n, 1n],
  ]);
  outbox.markSent(2);
  outbox.acknowledge(2);
  t.same(namesOf(2), [
    [3n, 2n],
    [4n, 3n],
  ]);
  t.match(open().state, { lastSequence: 4, sentThrough: 2, acknowledgedThrough: 2 }, 'it is durable');
  t.equal(outbox.backlog.reports, 2);
  t.equal(outbox.pending(2, { count: 2, bytes: 1 }).length, 1, 'one goes, however large it is');
});

void t.test(
  'an outbox that is removed begins anew, and so does one that was removed while it was open',
  async (t) => {
    const { path, open } = await outboxFor(t);
    const outbox = open();
    outbox.note({ reports: [alert('a')] });
    t.equal(outbox.isInPlace, true);
    await rm(path);
    t.equal(outbox.isInPlace, false);
    const next = open();
    t.same(
      waiting(next),
      [],
      'what the log of the old one holds is not taken for its own, SQLite sees to that',
    );
    t.not(next.state.generation, outbox.state.generation);
    await writeFile(`${path}.new`, '');
    await rename(`${path}.new`, path);
    t.equal(next.isInPlace, false, 'another file in its place');
  },
);

void t.test('a damaged outbox is set aside, and the next generation says so', async (t) => {
  const damages: readonly (readonly [string, (path: string) => Promise<void>])[] = [
    ['its beginning', (path) => write(path, 0, 100)],
    ['a page in the middle', (path) => write(path, 4096 * 2, 4096)],
    ['its end', async (path) => truncate(path, (await stat(path)).size - 5000)],
    [
      'no database at all',
      (path) => writeFile(path, 'hello, I am a text, and a long one at that\n'.repeat(100)),
    ],
  ];
  for (const [what, damage] of damages) {
    const { path, open } = await outboxFor(t);
    {
      using outbox = new Outbox(path, { maxBytes: 2 ** 30 });
      for (let count = 0; count < 50; count++) outbox.note({ reports: [alert('a', 'x'.repeat(500))] });
    }
    await damage(path);
    const { state, backlog } = open();
    t.match([state.reason, backlog.reports], ['damaged', 0], what);
    t.equal(existsSync(`${path}.damaged`), true, what);
  }
});

async function write(path: string, place: number, bytes: number): Promise<void> {
  const file = await openFile(path, 'r+');
  await file.write(Buffer.alloc(bytes, 0x5a), 0, bytes, place);
  await file.close();
}

void t.test('damage that is met at work is told, and set aside at the next opening', async (t) => {
  const { path, open } = await outboxFor(t);
  const outbox = open();
  outbox.note({ reports: [alert('a')] });
  const other = new DatabaseSync(path);
  other.exec(`UPDATE reports SET content = x'ffff'`);
  other.close();
  t.throws(() => outbox.pending(0, { count: 1, bytes: 1 }), { code: 'OUTBOX_DAMAGED' });
  t.equal(outbox.isDamaged, true);
  t.equal(open({ isDamaged: true }).state.reason, 'damaged');
});

void t.test('one of a newer version is left alone', async (t) => {
  const { path } = await outboxFor(t);
  new Outbox(path, { maxBytes: 2 ** 30 })[Symbol.dispose]();
  const other = new DatabaseSync(path);
  other.exec('PRAGMA user_version = 99');
  other.close();
  const before = await readFile(path);
  t.throws(() => new Outbox(path, { maxBytes: 1e9 }), { code: 'OUTBOX_UNUSABLE', message: /version 99/ });
  t.same(await readFile(path), before);
});

void t.test('one of an earlier version is taken over with what it knows', async (t) => {
  const { path, open } = await outboxFor(t);
  const told = [{ kind: 'machine', subject: 'm', seen: 'running' }];
  const earlier = new Outbox(path, { maxBytes: 2 ** 30 });
  earlier.note({ reports: [alert('a')], told });
  const { generation } = earlier.state;
  earlier[Symbol.dispose]();
  const other = new DatabaseSync(path);
  other.exec('ALTER TABLE told DROP COLUMN is_sure; PRAGMA user_version = 1');
  other.close();
  const outbox = open();
  t.equal(outbox.state.generation, generation);
  t.same(waiting(outbox), ['1 alert']);
  t.same([...outbox.told('machine')], [['m', { seen: 'running', isSure: true }]]);
});

void t.test('an outbox that was set back keeps what waits, in its order and under its ids', async (t) => {
  const { open } = await outboxFor(t);
  const outbox = open();
  outbox.note({
    reports: ['a', 'b', 'c', 'd'].map((key) => alert(key)),
    told: [{ kind: 'alert', subject: 'a', seen: 'raised' }],
    cursor: { name: 'jobs', value: 7 },
  });
  outbox.markSent(4);
  outbox.acknowledge(2);
  const idsOf = () => outbox.pending(0, { count: 9, bytes: 1e9 }).map(({ report }) => report.id);
  const ids = idsOf();
  const { generation } = outbox.state;
  outbox.beginGeneration('set-back');
  t.same(idsOf(), ids);
  t.same(waiting(outbox), ['1 alert', '2 alert']);
  t.match(outbox.state, { reason: 'set-back', lastSequence: 2, sentThrough: 0, acknowledgedThrough: 0 });
  t.not(outbox.state.generation, generation);
  t.same([...outbox.told('alert')], [['a', { seen: 'raised', isSure: false }]]);
  t.equal(outbox.cursor('jobs'), undefined, 'jobs are read anew');
  outbox.note({ reports: [alert('e')], told: [{ kind: 'alert', subject: 'a', seen: 'raised' }] });
  t.same(waiting(outbox), ['1 alert', '2 alert', '3 alert']);
  t.same([...outbox.told('alert')], [['a', { seen: 'raised', isSure: true }]]);
});

void t.test('what is on its way is not thinned out, for it may have arrived', async (t) => {
  const { open } = await outboxFor(t, { maxBytes: 4 * reportBytes });
  const outbox = open();
  outbox.note({ reports: [machine('m'), machine('m', 'paused')] });
  outbox.markSent(1);
  for (let count = 0; count < 20; count++) outbox.note({ reports: [alert('a', 'x'.repeat(100))] });
  t.equal(waiting(outbox)[0], '1 machine');
});

void t.test('a state that had to go is told again', async (t) => {
  const { open } = await outboxFor(t, { maxBytes: 4 * reportBytes });
  const outbox = open();
  outbox.note({ reports: [machine('m')], told: [{ kind: 'machine', subject: 'm', seen: 'running' }] });
  t.same([...outbox.told('machine')], [['m', { seen: 'running', isSure: true }]]);
  for (let count = 0; count < 20; count++) outbox.note({ reports: [alert('a', 'x'.repeat(100))] });
  t.same([...outbox.told('machine')], [['m', { seen: 'running', isSure: false }]], 'also that it is gone');
});

void t.test('the file stays near its bound, however much passes through it', async (t) => {
  const maxBytes = 1024 * 1024;
  const { path, open } = await outboxFor(t, { maxBytes });
  const outbox = open();
  for (let round = 0; round < 60; round++)
    outbox.note({ reports: Array.from({ length: 100 }, (_, at) => alert(`${at}`, 'x'.repeat(at * 5))) });
  t.ok(outbox.backlog.sizeBytes <= maxBytes, `${outbox.backlog.sizeBytes} bytes wait`);
  const sizes = await Promise.all(['', '-wal'].map(async (end) => (await stat(`${path}${end}`)).size));
  t.ok((sizes[0] ?? 0) <= maxBytes * 1.5, `the file has ${sizes[0]} bytes`);
  t.comment(`file and log: ${sizes.join(', ')} bytes for ${maxBytes}`);
});
