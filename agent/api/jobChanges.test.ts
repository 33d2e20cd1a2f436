import t from 'tap';
import { jobOf, journalFor } from '../../test/sim/journals.ts';
import { rememberedJobs } from '../jobs/oldJobs.ts';
import { JobChanges } from './jobChanges.ts';

void t.test('a job that the journal has forgotten keeps nobody from being told of the others', async (t) => {
  const { journal } = await journalFor(t);
  const backupFacts = (): undefined => undefined;
  const changes = new JobChanges({ parts: { journal }, backupFacts });
  const old = journal.create(jobOf('m')).id;
  journal.end(old, { state: 'finished' });
  changes.look();
  t.equal(journal.forgetOld(Date.now() + 2 * rememberedJobs.longestMs, 10), 1);
  const { id } = journal.create(jobOf('n'));
  t.same(
    changes.look().map((job) => job.id),
    [id],
  );
});
