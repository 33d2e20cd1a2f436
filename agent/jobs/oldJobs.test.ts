import t from 'tap';
import { jobOf, journalFor } from '../../test/sim/journals.ts';
import type { Journal } from './journal.ts';
import { rememberedJobs } from './oldJobs.ts';

const { allMs, ofMachine, longestMs } = rememberedJobs;
const hourMs = 3_600_000;

/** Jobs of a machine that have just ended, in their order. */
function endedJobs(journal: Journal, machine: string, count: number): readonly string[] {
  return Array.from({ length: count }, () => {
    const { id } = journal.create(jobOf(machine));
    journal.write(id, { begun: 'one' });
    journal.end(id, { state: 'finished' });
    return id;
  });
}

const idsOf = (journal: Journal): readonly string[] =>
  journal
    .list()
    .map(({ id }) => id)
    .toSorted();

void t.test(
  'of each machine the newest jobs stay, and those of the last weeks whatever their number',
  async (t) => {
    const { journal } = await journalFor(t);
    const many = endedJobs(journal, 'm', ofMachine + 3);
    const few = endedJobs(journal, 'n', 2);
    t.equal(journal.forgetOld(Date.now() + allMs - hourMs, 1000), 0, 'all of them ended lately');
    t.equal(journal.forgetOld(Date.now() + allMs + hourMs, 1000), 3);
    t.same(
      idsOf(journal),
      [...many.slice(3), ...few].toSorted(),
      'the oldest of the machine that has more went',
    );
    t.same(journal.steps(many[0] ?? ''), [], 'with their steps');
    t.equal(
      journal.changedJobs(undefined, 1000).jobs.length,
      ofMachine + 2,
      'and nobody is told of them any more',
    );
  },
);

void t.test(
  'after a year and a month nothing is remembered but what somebody has yet to decide about',
  async (t) => {
    const { journal } = await journalFor(t);
    endedJobs(journal, 'gone', 3);
    const parked = journal.create(jobOf('m')).id;
    journal.end(parked, { state: 'failed', holdsMachine: true });
    const atWork = journal.create(jobOf('n')).id;
    t.equal(journal.forgetOld(Date.now() + longestMs + hourMs, 1000), 3);
    t.same(idsOf(journal), [parked, atWork].toSorted());
  },
);

void t.test('one call forgets no more than it was told, the oldest first', async (t) => {
  const { journal } = await journalFor(t);
  const [first = '', second = '', third = ''] = endedJobs(journal, 'm', 3);
  const nowMs = Date.now() + longestMs + hourMs;
  t.equal(journal.forgetOld(nowMs, 2), 2);
  t.same(idsOf(journal), [third]);
  t.throws(() => journal.get(first), { code: 'JOB_NOT_FOUND' });
  t.throws(() => journal.get(second), { code: 'JOB_NOT_FOUND' });
});
