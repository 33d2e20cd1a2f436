import { DatabaseSync } from 'node:sqlite';

import t from 'tap';

import { deadOwner, jobOf, journalFor, undoVersion4, undoVersion5 } from '../../test/sim/journals.ts';
import type { Journal } from './journal.ts';
import { thisOwner } from './owner.ts';

const idsOf = (journal: Journal, after?: ReturnType<Journal['changedJobs']>['cursor']): readonly string[] =>
  journal.changedJobs(after, 100).jobs.map(({ id }) => id);

void t.test('a job is seen again after each change of it, whichever process made that', async (t) => {
  const { journal, open } = await journalFor(t);
  const { id } = journal.create(jobOf('m', deadOwner));
  const other = open();
  const changes: readonly (readonly [string, () => unknown])[] = [
    ['a step has begun', () => other.write(id, { begun: 'save' })],
    ['a step has ended', () => other.write(id, { ended: { name: 'save', status: 'done', durationMs: 1 } })],
    ['its state', () => other.write(id, { state: 'snapshotting' })],
    ['its owner', () => other.takeOver(id, thisOwner())],
    ['its end', () => other.end(id, { state: 'failed', holdsMachine: true })],
    ['another try', () => other.takeOver(id, thisOwner())],
  ];
  let { cursor } = journal.changedJobs(undefined, 100);
  for (const [what, change] of changes) {
    t.same(idsOf(journal, cursor), [], `nothing before: ${what}`);
    change();
    t.same(idsOf(journal, cursor), [id], what);
    ({ cursor } = journal.changedJobs(cursor, 100));
  }
});

void t.test('jobs come in the order of their last changes, and in pieces none is left out', async (t) => {
  const { journal } = await journalFor(t);
  const ids = ['a', 'b', 'c'].map((uuid) => journal.create(jobOf(uuid)).id);
  journal.end(ids[0] ?? '', { state: 'finished' });
  const order = [ids[1], ids[2], ids[0]];
  t.same(idsOf(journal), order);
  const first = journal.changedJobs(undefined, 2);
  t.equal(first.more, true);
  const second = journal.changedJobs(first.cursor, 2);
  t.same(
    [...first.jobs, ...second.jobs].map(({ id }) => id),
    order,
  );
  t.equal(second.more, false);
});

void t.test('jobs of a journal that an older program has made are all seen', async (t) => {
  const { path, journal, open } = await journalFor(t);
  const { id } = journal.create(jobOf('m'));
  const database = new DatabaseSync(path);
  database.exec(`${undoVersion5}; ${undoVersion4}`);
  database.close();
  const upgraded = open();
  t.same(idsOf(upgraded), [id]);
  const { cursor } = upgraded.changedJobs(undefined, 100);
  upgraded.end(id, { state: 'finished' });
  t.same(idsOf(upgraded, cursor), [id]);
});

void t.test(
  'a cursor of another journal, or of a later state of this one, reads from the beginning',
  async (t) => {
    const { journal } = await journalFor(t);
    const { id } = journal.create(jobOf('m'));
    const { cursor } = journal.changedJobs(undefined, 100);
    t.same(idsOf(journal, cursor), []);
    t.same(idsOf(journal, { ...cursor, journal: 'another' }), [id]);
    t.same(idsOf(journal, { ...cursor, change: cursor.change + 1 }), [id]);
  },
);
