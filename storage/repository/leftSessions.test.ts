import { hostname } from 'node:os';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { isLeft, type JobFate } from './leftSessions.ts';
import type { OpenSession } from './openSessions.ts';
import { isKnownDead, thisSessionOwner } from './sessionOwner.ts';

const backupId = newId();
const startedAt = '2026-11-22T10:00:00.000Z';
/** No process has this pid. */
const noProcess = 2 ** 22 + 1;
const here = { host: hostname(), startedAt, processId: process.pid, owner: thisSessionOwner() };

function sessionOf(announcement: OpenSession['announcement']): OpenSession {
  return { backupId, attempt: 1, announcement };
}

const knows = (fate: JobFate) => (): JobFate => fate;

void t.test('a process is known to be dead on its own host only, in its boot and in later ones', (t) => {
  const { owner } = here;
  t.equal(isKnownDead(here), false, 'it is this one');
  t.equal(isKnownDead({ ...here, processId: noProcess }), true);
  t.equal(isKnownDead({ ...here, owner: { ...owner, startTicks: 1 } }), true, 'another has its pid now');
  t.equal(isKnownDead({ ...here, host: 'another', processId: noProcess }), false);
  t.equal(isKnownDead({ ...here, processId: noProcess, owner: undefined }), false, 'of an earlier version');
  const rebooted = { ...owner, bootId: 'before' };
  t.equal(isKnownDead({ ...here, owner: rebooted }), owner.machine !== null);
  t.equal(isKnownDead({ ...here, owner: { ...rebooted, machine: 'another' } }), false, 'of the same name');
  t.equal(isKnownDead({ ...here, owner: { ...rebooted, machine: null } }), false);
  t.end();
});

void t.test(
  'nobody goes on with the session of a job that has ended, or of a copy whose process is dead',
  (t) => {
    const job = sessionOf({ ...here, jobId: newId() });
    t.equal(isLeft(job, knows('ended')), true, 'though its process lives: the service');
    t.equal(isLeft(job, knows('unfinished')), false);
    const deadJob = sessionOf({ ...here, jobId: newId(), processId: noProcess });
    t.equal(isLeft(deadJob, knows('unfinished')), false, 'it is to be recovered');
    t.equal(isLeft(deadJob, knows('unknown')), false, 'another journal of this host may know it');
    for (const jobId of [backupId, undefined]) {
      t.equal(isLeft(sessionOf({ ...here, jobId }), knows('unknown')), false);
      t.equal(isLeft(sessionOf({ ...here, jobId, processId: noProcess }), knows('unknown')), true);
    }
    t.equal(isLeft(sessionOf(null), knows('ended')), false, 'who cannot be read is not ours to end');
    t.end();
  },
);
