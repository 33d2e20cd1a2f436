import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { jobMessage } from '../../agent/api/jobMessage.ts';
import { Journal } from '../../agent/jobs/journal.ts';
import { thisOwner } from '../../agent/jobs/owner.ts';
import { Job } from '../../proto/generated/stillpoint/v1/agent.ts';
import { jobJson } from '../jobView.ts';
import { jobJsonOf } from './fromMessages.ts';

void t.test('a job is printed the same, whether the service or the journal tells of it', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-messages-'));
  t.teardown(() => rm(directory, { recursive: true }));
  using journal = new Journal(join(directory, 'journal.sqlite'));
  const id = '01a1fa1b-a048-7000-8000-0123456789ab';
  journal.create({
    id,
    kind: 'backup',
    machineUuid: '00000000-0000-4000-8000-000000000001',
    machineName: 'web-1',
    state: 'snapshotting',
    record: {},
    owner: thisOwner(),
  });
  const printed = (): readonly [unknown, unknown] => {
    const job = journal.get(id);
    const message = jobMessage({ parts: { journal }, backupFacts: () => undefined }, job);
    return [jobJsonOf(Job.decode(Job.encode(message).finish())), jobJson(journal, job)];
  };
  const same = (what: string): void => {
    const [byService, here] = printed();
    t.same(byService, here, what);
  };
  same('at work');
  t.match(printed()[0], { pause: null });
  journal.requestPause(id, Date.now() + 60_000);
  same('asked to pause');
  journal.notePaused(id, Date.now());
  same('paused');
  t.match(printed()[0], { pause: { requestedAt: /Z$/, since: /Z$/, until: /Z$/ } });
});
