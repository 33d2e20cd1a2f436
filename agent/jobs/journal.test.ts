import { existsSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';

import t from 'tap';

import {
  deadOwner,
  jobOf,
  journalFor,
  undoVersion3,
  undoVersion4,
  undoVersion5,
} from '../../test/sim/journals.ts';
import { Journal } from './journal.ts';
import { processStartTicks, thisOwner } from './owner.ts';

void t.test('what a call wrote is there after the process was killed without closing anything', async (t) => {
  const { path, journal } = await journalFor(t);
  const script = `
    const { Journal } = await import(${JSON.stringify(new URL('journal.ts', import.meta.url).href)});
    const journal = new Journal(${JSON.stringify(path)});
    journal.create(${JSON.stringify({ ...jobOf('m', deadOwner), id: '01a1fa1b-a048-702f-a832-3f1deebf16d6' })});
    journal.write('01a1fa1b-a048-702f-a832-3f1deebf16d6', { begun: 'save', record: { b: 2 }, state: 'snapshotting' });
    process.kill(process.pid, 'SIGKILL');`;
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], { timeout: 30_000 });
  t.equal(child.signal, 'SIGKILL', child.stderr.toString());
  const [job] = journal.orphaned();
  t.match(job, { state: 'snapshotting', record: { b: 2 }, owner: deadOwner, holdsMachine: true });
  t.match(journal.steps(job?.id ?? ''), [{ name: 'save', status: 'begun', durationMs: null }]);
  const database = new DatabaseSync(path);
  t.equal(database.prepare('PRAGMA journal_mode').get()?.['journal_mode'], 'wal');
  database.close();
});

void t.test('steps end in one commit with the next intent, and the last of a name counts', async (t) => {
  const { journal } = await journalFor(t);
  const { id } = journal.create(jobOf('m'));
  journal.write(id, { begun: 'one', state: 'snapshotting' });
  journal.write(id, { ended: { name: 'one', status: 'failed', durationMs: 5 }, begun: 'one' });
  journal.write(id, {
    ended: { name: 'one', status: 'done', durationMs: 7 },
    record: { c: 3 },
    begun: 'two',
  });
  t.match(journal.steps(id), [
    { name: 'one', status: 'failed', durationMs: 5 },
    { name: 'one', status: 'done', durationMs: 7 },
    { name: 'two', status: 'begun', durationMs: null },
  ]);
  t.match(journal.get(id), { state: 'snapshotting', record: { c: 3 } }, 'a part that is not given stays');
});

void t.test('a machine has one job at a time, also between two journal objects on one file', async (t) => {
  const { path, journal, open } = await journalFor(t);
  const other = open();
  const first = journal.create(jobOf('m'));
  t.throws(() => other.create(jobOf('m')), {
    code: 'MACHINE_BUSY',
    retryable: true,
    hint: `stillpoint job watch ${first.id}`,
  });
  t.throws(() => journal.create(jobOf('m')), { code: 'MACHINE_BUSY' });
  other.create(jobOf('n'));
  journal.end(first.id, { state: 'finished' });
  const second = other.create(jobOf('m', deadOwner));
  t.throws(() => journal.create(jobOf('m')), { code: 'UNFINISHED_JOB', retryable: false });
  journal.end(second.id, { state: 'failed', holdsMachine: true });
  t.throws(() => journal.create(jobOf('m')), { code: 'UNFINISHED_JOB' }, 'a parked job keeps the machine');
  t.equal(journal.holder('m')?.id, second.id);
  // Whatever the code above it does, the tables themselves refuse a second holder.
  const database = new DatabaseSync(path);
  t.throws(() => database.exec("UPDATE jobs SET machine_uuid = 'm' WHERE machine_uuid = 'n'"), /UNIQUE/);
  database.close();
});

void t.test(
  'a job is taken over from a dead owner or from nobody, never from a living one, and once',
  async (t) => {
    const { journal, open } = await journalFor(t);
    const living = journal.create(jobOf('living'));
    const dead = journal.create(jobOf('dead', deadOwner));
    const reused = journal.create(jobOf('reused', { ...thisOwner(), startTicks: 1 }));
    const rebooted = journal.create(jobOf('rebooted', { ...thisOwner(), bootId: 'another' }));
    const ended = journal.create(jobOf('ended', deadOwner));
    journal.end(ended.id, { state: 'finished' });
    t.same(
      journal.orphaned().map(({ id }) => id),
      [dead.id, reused.id, rebooted.id],
    );
    t.equal(journal.takeOver(living.id, thisOwner()), false);
    t.equal(journal.takeOver(ended.id, thisOwner()), false);
    for (const { id } of [dead, reused, rebooted]) {
      t.equal(open().takeOver(id, thisOwner()), true);
      t.equal(journal.takeOver(id, thisOwner()), false, 'its new owner lives');
    }
    t.same(journal.orphaned(), []);
    journal.end(dead.id, { state: 'failed', holdsMachine: true });
    t.same(journal.orphaned(), [], 'a parked job waits for its operator');
    t.equal(journal.takeOver(dead.id, thisOwner()), true);
    t.equal(journal.get(dead.id).finishedAtMs, null);
  },
);

void t.test('a job is named by its id, or by a beginning or end of it that is unique', async (t) => {
  const { journal } = await journalFor(t);
  const make = (id: string, machine: string): void => void journal.create({ ...jobOf(machine), id });
  make('01a1fa1b-a048-702f-a832-3f1deebf16d6', 'm');
  make('01a1fa1b-b048-702f-a832-3f1deebf16d7', 'n');
  for (const id of ['01a1fa1b-a048-702f-a832-3f1deebf16d6', '01a1fa1b-a', 'ebf16d6', '1deebf16d6']) {
    if (id.length < 8) t.throws(() => journal.get(id), { code: 'JOB_NOT_FOUND' }, `${id} is too short`);
    else t.equal(journal.get(id).machineUuid, 'm', id);
  }
  for (const id of ['01a1fa1b', 'ffffffff', '', '%%%%%%%%', "' OR 1=1 --", '________-'])
    t.throws(() => journal.get(id), { code: id === '01a1fa1b' ? 'JOB_AMBIGUOUS' : 'JOB_NOT_FOUND' }, id);
});

void t.test('an id in full means its job, whatever others begin or end with it', async (t) => {
  const { journal } = await journalFor(t);
  const id = '01a1fa1b-a048-702f-a832';
  journal.create({ ...jobOf('m'), id });
  journal.create({ ...jobOf('n'), id: `${id}-3f1deebf16d7` });
  t.equal(journal.get(id).machineUuid, 'm');
});

void t.test('a cancel and the progress of a job reach the other processes', async (t) => {
  const { journal, open } = await journalFor(t);
  const other = open();
  const { id } = journal.create(jobOf('m'));
  t.equal(journal.isCancelRequested(id), false);
  other.requestCancel(id);
  t.equal(journal.isCancelRequested(id), true);
  const progress = { jobId: id, state: 'merging', step: 'merge', doneBytes: 5, totalBytes: 2 ** 50 } as const;
  journal.publishProgress(id, progress);
  t.same(other.progress(id), progress);
  journal.end(id, { state: 'cancelled', error: { code: 'X', message: 'y', retryable: false } });
  t.equal(other.progress(id), undefined, 'nothing of it is left at the end');
  t.match(other.get(id), { state: 'cancelled', error: { code: 'X' }, owner: null, holdsMachine: false });
});

void t.test('the newest jobs are listed first, of one machine if asked', async (t) => {
  const { journal } = await journalFor(t);
  for (const machine of ['m', 'n', 'm'])
    journal.end(journal.create(jobOf(machine)).id, { state: 'finished' });
  t.equal(journal.list().length, 3);
  t.equal(journal.list({ machine: 'm' }).length, 2);
  const [newest] = journal.list({ limit: 1 });
  t.ok(journal.list().every(({ id }) => id <= (newest?.id ?? '')));
});

void t.test('a journal that is opened for reading changes nothing', async (t) => {
  const { path, journal, open } = await journalFor(t);
  const { id } = journal.create(jobOf('m', deadOwner));
  const before = [await readFile(path), (await stat(path)).mtimeMs];
  const reader = open({ readOnly: true });
  t.equal(reader.orphaned().length, 1);
  for (const change of [
    () => reader.create(jobOf('n')),
    () => reader.write(id, { state: 'merged' }),
    () => reader.end(id, { state: 'finished' }),
    () => reader.takeOver(id, thisOwner()),
    () => reader.requestCancel(id),
  ]) {
    t.throws(change, /readonly/);
  }
  t.same([await readFile(path), (await stat(path)).mtimeMs], before);
  t.match(journal.get(id), { state: 'initialized', owner: deadOwner });
  t.throws(() => new Journal(`${path}.missing`, { readOnly: true }), { code: 'JOURNAL_UNUSABLE' });
  await t.rejects(stat(`${path}.missing`), { code: 'ENOENT' }, 'nor is it made');
});

void t.test('a journal of a newer version, or one that is none, is refused and left alone', async (t) => {
  const { path, journal, open } = await journalFor(t);
  journal.create(jobOf('m'));
  const database = new DatabaseSync(path);
  database.exec('PRAGMA user_version = 99');
  database.close();
  t.throws(() => open(), { code: 'JOURNAL_UNUSABLE', hint: /newer/ });
  t.throws(() => open({ readOnly: true }), { code: 'JOURNAL_UNUSABLE', hint: /newer/ }, 'for reading too');
  const broken = `${path}.broken`;
  await writeFile(broken, 'not a database'.repeat(100));
  t.throws(() => new Journal(broken), { code: 'JOURNAL_UNUSABLE', hint: /stateDir/ });
  t.match(await readFile(broken, 'utf8'), /^not a database/);
});

void t.test('what SQLite cannot write is told as a fault of the journal, with where to look', async (t) => {
  const { journal, path } = await journalFor(t);
  const { id } = journal.create(jobOf('m'));
  const other = new DatabaseSync(path);
  other.exec("CREATE TRIGGER full BEFORE UPDATE ON jobs BEGIN SELECT RAISE(ABORT, 'disk is full'); END");
  other.close();
  const told = { code: 'JOURNAL_UNUSABLE', message: /disk is full/, hint: /df -h/, retryable: true };
  t.throws(() => journal.write(id, { record: {} }), told);
  t.throws(() => journal.end(id, { state: 'finished' }), told);
  t.throws(() => journal.requestCancel(id), told);
  t.ok(existsSync(`${path}.reserve`), 'the reserve is for a disk that is full');
});

void t.test(
  'a journal of the first version is taken over with its jobs, and learns of schedules',
  async (t) => {
    const { path, journal, open } = await journalFor(t);
    const job = journal.create(jobOf('m'));
    const database = new DatabaseSync(path);
    database.exec(
      `${undoVersion5}; ${undoVersion4}; ${undoVersion3}; DROP TABLE schedules; DROP TABLE service; PRAGMA user_version = 1`,
    );
    database.close();
    const old = open({ readOnly: true });
    t.same([old.schedule('m'), old.serviceOwner()], [undefined, undefined], 'who only looks changes nothing');
    const present = open();
    t.equal(present.get(job.id).machineUuid, 'm');
    t.same(present.schedules(), []);
    t.equal(present.claimService(thisOwner()), true);
    t.equal(open().get(job.id).id, job.id, 'and once');
  },
);

const scheduleOf = (machineUuid: string) => ({
  machineUuid,
  machineName: `name of ${machineUuid}`,
  slots: '{}',
  state: { a: 1 },
  lastWord: null,
  seenAtMs: 1,
});

void t.test('a run of a schedule is written down with its job, or not at all', async (t) => {
  const { journal, open } = await journalFor(t);
  const { id } = journal.create({ ...jobOf('m'), scheduled: { schedule: scheduleOf('m') } });
  t.same(open().schedule('m'), { ...scheduleOf('m'), jobId: id });
  const changed = { ...scheduleOf('m'), state: { a: 2 } };
  t.throws(() => journal.create({ ...jobOf('m'), scheduled: { schedule: changed } }), {
    code: 'MACHINE_BUSY',
  });
  t.match(journal.schedule('m'), { state: { a: 1 }, jobId: id });
  journal.end(id, { state: 'failed' });
  const other = journal.create({ ...jobOf('m'), scheduled: { insteadOf: id } });
  t.match(journal.schedule('m'), { state: { a: 1 }, jobId: other.id }, 'a job in the place of another');
  journal.forgetSchedules(['m', 'n']);
  t.same(journal.schedules(), []);
});

void t.test('one living process is the service of a host', async (t) => {
  const { journal } = await journalFor(t);
  const another = { ...thisOwner(), pid: process.ppid, startTicks: processStartTicks(process.ppid) ?? 0 };
  t.equal(journal.claimService(deadOwner), true);
  t.equal(journal.claimService(another), true, 'after a dead one');
  t.equal(journal.claimService(another), true, 'again');
  t.equal(journal.claimService(thisOwner()), false);
  t.same(journal.serviceOwner(), another);
});

void t.test(
  'the newest jobs of each machine are found by kind and state, without reading their records',
  async (t) => {
    const { journal } = await journalFor(t);
    const ended = (uuid: string, state: 'finished' | 'failed'): string => {
      const { id } = journal.create(jobOf(uuid));
      journal.end(id, { state });
      return id;
    };
    const [first, second, third] = [ended('a', 'finished'), ended('a', 'finished'), ended('a', 'failed')];
    const other = ended('b', 'finished');
    const restore = journal.create({ ...jobOf('a'), kind: 'restore' });
    journal.end(restore.id, { state: 'finished' });
    const find = (states: readonly ('finished' | 'failed')[], perMachine: number) =>
      journal.newestOfMachines({ kind: 'backup', states, perMachine });
    t.same(find(['finished'], 1), [other, second]);
    t.same(find(['finished'], 5), [other, second, first]);
    t.same(find(['finished', 'failed'], 1), [other, third]);
  },
);

void t.test('who was the service says of which version it is', async (t) => {
  const { journal } = await journalFor(t);
  t.equal(journal.serviceVersion(), undefined);
  journal.claimService(thisOwner());
  t.match(journal.serviceVersion(), /^\d+\.\d+\.\d+/);
  t.same(journal.serviceOwner(), thisOwner(), 'the owner is the process alone');
});
