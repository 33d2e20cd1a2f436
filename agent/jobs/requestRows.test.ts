import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import t from 'tap';
import { Journal } from './journal.ts';
import { thisOwner } from './owner.ts';
import { RequestBook, requestTables } from './requestRows.ts';

const hourMs = 3_600_000;
const asked = { scope: 'socket:uid 0', key: 'key-1' };
const error = { code: 'MACHINE_NOT_FOUND', message: 'there is none', hint: 'virsh list', retryable: false };

async function journalFile(): Promise<{ readonly path: string } & AsyncDisposable> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-requests-'));
  return {
    path: join(directory, 'journal.sqlite'),
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true }),
  };
}

const job = {
  id: '01a1fa1b-a048-7000-8000-000000000001',
  kind: 'backup',
  machineUuid: 'u',
  machineName: 'm',
  state: 'initialized',
  record: {},
  owner: thisOwner(),
} as const;

void t.test('a request is known with its outcomes after the journal was closed', async (t) => {
  await using file = await journalFile();
  {
    using journal = new Journal(file.path);
    t.same(journal.requests.open(asked, 'f'), { kind: 'new' });
    journal.create({ ...job, scheduled: { request: { ...asked, part: 'm' } } });
    journal.requests.refuse({ ...asked, part: 'n' }, error);
  }
  using journal = new Journal(file.path);
  t.same(journal.requests.open(asked, 'f'), {
    kind: 'known',
    outcomes: [
      { part: 'm', jobId: job.id, error: null },
      { part: 'n', jobId: null, error },
    ],
  });
  t.same(journal.requests.open(asked, 'another'), { kind: 'other' });
  t.same(journal.requests.open({ ...asked, scope: 'socket:uid 1000' }, 'another'), { kind: 'new' });
});

void t.test(
  'a job that could not be created leaves no outcome: there is never one without the other',
  async (t) => {
    await using file = await journalFile();
    using journal = new Journal(file.path);
    journal.requests.open(asked, 'f');
    journal.create(job);
    const again = { ...job, id: '01a1fa1b-a048-7000-8000-000000000002' };
    t.throws(() => journal.create({ ...again, scheduled: { request: { ...asked, part: 'm' } } }), {
      code: 'MACHINE_BUSY',
    });
    t.same(journal.requests.open(asked, 'f'), { kind: 'known', outcomes: [] });
  },
);

void t.test('a job in the place of another one is found by that one', async (t) => {
  await using file = await journalFile();
  using journal = new Journal(file.path);
  journal.create(job);
  journal.end(job.id, { state: 'failed' });
  t.equal(journal.replacementOf(job.id), undefined);
  const id = '01a1fa1b-a048-7000-8000-000000000002';
  journal.create({ ...job, id, scheduled: { insteadOf: job.id } });
  t.equal(journal.replacementOf(job.id), id);
});

void t.test(
  'a request is remembered for a day at least, and no more of them than there is room for',
  async (t) => {
    using db = Object.assign(new DatabaseSync(':memory:'), { [Symbol.dispose]: () => undefined });
    db.exec(`CREATE TABLE jobs (id TEXT); PRAGMA foreign_keys = ON; ${requestTables}`);
    const book = new RequestBook(db, (work) => work(), { requestsMax: 3 });
    const open = (key: string, atHours: number): string =>
      book.open({ scope: 's', key }, 'f', 1e12 + atHours * hourMs).kind;
    t.equal(open('a', 0), 'new');
    t.equal(open('b', 1), 'new');
    t.equal(open('c', 1), 'new');
    t.equal(open('d', 24), 'full', 'the oldest is not forgotten before its time');
    t.equal(open('a', 24), 'known');
    t.equal(open('d', 36.5), 'new', 'one has been kept for its time');
    t.equal(open('a', 36.5), 'full');
  },
);
