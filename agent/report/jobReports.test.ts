import t, { type Test } from 'tap';

import { deadOwner, jobOf, journalFor } from '../../test/sim/journals.ts';
import { outboxFor, alert } from '../../test/sim/reports.ts';
import { createLogger } from '../../common/log.ts';
import { thisOwner } from '../jobs/owner.ts';
import { feedJobs } from './jobReports.ts';
import type { Outbox } from './outbox.ts';
import { OutboxKeeper } from './outboxKeeper.ts';

const log = createLogger({ level: 'silent' });

async function feeder(test: Test, maxBytes = 2 ** 20) {
  const { path } = await outboxFor(test);
  const keeper = new OutboxKeeper(path, { maxBytes }, { log, onNoted: () => undefined });
  test.teardown(() => keeper[Symbol.dispose]());
  return keeper;
}

const bodies = (outbox: Outbox) =>
  outbox.pending(0, { count: 10_000, bytes: 1e9 }).map(({ report }) => report.body);

void t.test('a job is reported whole, with its steps, its pause and its error', async (t) => {
  const { journal } = await journalFor(t);
  const keeper = await feeder(t);
  const record = { backupId: '01a1fa1b-a048-702f-a832-3f1deebf16d6', pauseMs: 87.5, pointInTime: 'T1' };
  const { id } = journal.create({ ...jobOf('m'), record });
  journal.write(id, { begun: 'save', state: 'snapshotting' });
  journal.write(id, { ended: { name: 'save', status: 'failed', durationMs: 12 } });
  const error = { code: 'CANNOT_SAVE_MACHINE_STATE', message: 'it is full', hint: 'df', retryable: true };
  journal.end(id, { state: 'failed', error });
  t.same(
    feedJobs(journal, keeper).ended.map((job) => job.id),
    [id],
  );
  t.match(bodies(keeper.outbox), [
    {
      $case: 'job',
      value: {
        id,
        kind: 'backup',
        machineName: 'name of m',
        state: 'failed',
        ended: true,
        needsOperator: false,
        steps: [{ name: 'save', status: 'failed', durationMs: 12 }],
        error,
        backupId: record.backupId,
        pauseMs: 87.5,
        pointInTime: 'T1',
      },
    },
  ]);
});

void t.test('what another process did to a job is reported, each change once', async (t) => {
  const { journal, open } = await journalFor(t);
  const keeper = await feeder(t);
  const other = open();
  const { id } = other.create(jobOf('m'));
  feedJobs(journal, keeper);
  feedJobs(journal, keeper);
  other.end(id, { state: 'finished' });
  feedJobs(journal, keeper);
  feedJobs(journal, keeper);
  t.match(bodies(keeper.outbox), [
    { value: { id, ended: false } },
    { value: { id, state: 'finished', ended: true } },
  ]);
  t.equal(bodies(keeper.outbox).length, 2);
});

void t.test('a job that was left with work to do is an alert, until it is ended', async (t) => {
  const { journal } = await journalFor(t);
  const keeper = await feeder(t);
  const { id } = journal.create(jobOf('m', deadOwner));
  journal.end(id, { state: 'failed', holdsMachine: true });
  feedJobs(journal, keeper);
  journal.takeOver(id, thisOwner());
  feedJobs(journal, keeper);
  journal.end(id, { state: 'finished' });
  feedJobs(journal, keeper);
  const key = `job/${id}/parked`;
  t.match(bodies(keeper.outbox), [
    { $case: 'job', value: { ended: true, needsOperator: true } },
    { $case: 'alert', value: { key, raised: true, error: { hint: `stillpoint job show ${id}` } } },
    { $case: 'job', value: { ended: false, needsOperator: false } },
    { $case: 'alert', value: { key, raised: false } },
    { $case: 'job', value: { ended: true, needsOperator: false } },
  ]);
});

void t.test('a full outbox leaves jobs in the journal, and takes them when there is room', async (t) => {
  const { journal } = await journalFor(t);
  const keeper = await feeder(t, 4_000);
  const { outbox } = keeper;
  while (outbox.hasRoom) keeper.note({ reports: [alert('a', 'x'.repeat(200))] });
  const { id } = journal.create(jobOf('m'));
  journal.end(id, { state: 'finished' });
  const before = outbox.state;
  t.same(feedJobs(journal, keeper), { ended: [], more: false });
  t.same(outbox.state, before);
  outbox.acknowledge(before.lastSequence);
  t.equal(feedJobs(journal, keeper).ended.length, 1);
});

void t.test('a new outbox is told of all jobs once more', async (t) => {
  const { journal } = await journalFor(t);
  for (const uuid of ['a', 'b']) journal.end(journal.create(jobOf(uuid)).id, { state: 'finished' });
  for (let time = 0; time < 2; time++) {
    const keeper = await feeder(t);
    feedJobs(journal, keeper);
    t.equal(bodies(keeper.outbox).length, 2);
  }
});
