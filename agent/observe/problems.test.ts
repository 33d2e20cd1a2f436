import t from 'tap';
import { digest, host, hourMs, job, machine, nowMs, schedule, storage, stored, webUuid } from './fixture.ts';
import type { HostStatus } from './hostStatus.ts';
import { problemsOf } from './problems.ts';

const bounds = { overdueMs: 6 * hourMs, settleMs: 60_000 };
const events = (status: HostStatus, change: Partial<typeof bounds> = {}) =>
  problemsOf(status, { ...bounds, ...change }).map(({ event, severity }) => `${event} ${severity}`);
const error = { code: 'NO_SPACE', message: 'it is full', hint: 'make room', retryable: true };
const gaveUp = { kind: 'gave-up', slotMs: 0, atMs: nowMs, jobId: 'j', error } as const;

void t.test('where all is well nothing is told', (t) => {
  t.same(events(host()), []);
  const running = host({ jobs: [job(), job({ hold: 'waiting' }), job({ hold: 'orphaned' })] });
  t.same(events(running), [], 'jobs at work, and one that is taken over soon');
  t.end();
});

void t.test('libvirt and storages count as away only when they stay away', (t) => {
  const away = (ms: number): HostStatus =>
    host({
      hypervisor: { unreachableSinceMs: nowMs - ms, problem: error },
      storages: [storage({ unusableSinceMs: nowMs - ms, problem: error })],
    });
  t.same(events(away(59_000)), []);
  t.same(events(away(60_000)), ['libvirt-unreachable critical', 'storage-unusable critical']);
  t.same(events(away(0), { settleMs: 0 }).length, 2, 'who looks once wants to know at once');
  t.end();
});

void t.test('a job that was left with work is told of with what to type', (t) => {
  const parked = job({ hold: 'parked', error, hint: 'stillpoint job show 1' });
  t.match(problemsOf(host({ jobs: [parked] }), bounds), [
    { event: 'job-parked', jobId: parked.id, machine: { name: 'web-1' }, hint: 'stillpoint job show 1' },
  ]);
  const itsRun = machine({ lastRun: digest({ state: 'failed', error }) });
  t.same(events(host({ jobs: [parked], machines: [itsRun] })), ['job-parked critical'], 'and told once');
  t.end();
});

void t.test('a machine is overdue when its backup has been due for the time that is allowed', (t) => {
  const due = (ms: number): HostStatus =>
    host({ machines: [machine({ schedule: schedule({ dueSinceMs: nowMs - ms }) })] });
  t.same(events(due(6 * hourMs - 1)), []);
  t.same(events(due(6 * hourMs)), ['machine-overdue critical']);
  t.end();
});

void t.test('the last word of a schedule is told until a backup has succeeded, by whoever', (t) => {
  const failed = digest({ state: 'failed', error, endedAtMs: nowMs });
  const about = { lastRun: failed, schedule: schedule({ lastWord: gaveUp }) };
  t.same(events(host({ machines: [machine(about)] })), ['backup-failed critical']);
  const byHand = digest({ endedAtMs: nowMs + 1 });
  t.same(events(host({ machines: [machine({ ...about, lastRun: byHand, lastSuccess: byHand })] })), []);
  const retried = { ...about, schedule: schedule({ lastWord: { ...gaveUp, kind: 'retry' as const } }) };
  t.same(events(host({ machines: [machine(retried)] })), ['last-backup-failed critical'], 'no last word yet');
  t.end();
});

void t.test('a machine that nobody wants backed up has no problems', (t) => {
  const excluded = machine({ excluded: true, lastRun: digest({ state: 'failed', error }) });
  t.same(events(host({ machines: [excluded] })), []);
  t.end();
});

void t.test('a storage that fills up is a warning, and a full one is worse', (t) => {
  const full = (state: Parameters<typeof storage>[0]) => events(host({ storages: [storage(state)] }));
  t.same(full({ state: { warning: '86 %' } }), ['storage-full warning']);
  t.same(full({ state: { warning: '100 %', freeBytes: 0 } }), ['storage-full critical']);
  t.same(full({ state: { warning: '100 %', storedBytes: 7, quotaBytes: 7 } }), ['storage-full critical']);
  t.end();
});

void t.test('a backup that was verified and is not good is told of, and what is worst comes first', (t) => {
  const bad = stored({ failedVerification: { backupId: 'b1', atMs: nowMs } });
  const look = storage({ machines: new Map([[webUuid, bad]]), state: { warning: '86 %' } });
  t.match(problemsOf(host({ storages: [look] }), bounds), [
    { event: 'verification-failed', machine: { uuid: webUuid }, storage: 'local', message: /b1/ },
    { event: 'storage-full' },
  ]);
  t.end();
});

void t.test('pushed policies that cannot be used are told, with the revision and who pushed them', (t) => {
  const kept = { revision: 7, document: '{}', setBy: 'controller:c1', setAt: '2026-11-22T10:00:00.000Z' };
  t.same(events(host({ pushed: { kept, problems: [] } })), []);
  t.match(problemsOf(host({ pushed: { kept, problems: ['no storage is called vault'] } }), bounds), [
    {
      event: 'policies-unusable',
      severity: 'critical',
      message: /revision 7, by controller:c1.*: no storage is called vault/,
      hint: /stillpoint policies/,
    },
  ]);
  t.match(problemsOf(host({ pushed: { kept: null, problems: ['it is damaged'] } }), bounds), [
    { message: /to this host cannot be used as it is: it is damaged/ },
  ]);
  t.end();
});

const stopped = { running: false, pid: null, sinceMs: null, version: null };

void t.test('a service that does not run is the worst of news where policies have schedules', (t) => {
  t.match(problemsOf(host({ service: stopped }), bounds), [
    {
      event: 'service-stopped',
      severity: 'critical',
      message: /^policy default has a schedule, and the service does not run/,
      hint: /systemctl status stillpoint-agent; systemctl start stillpoint-agent/,
    },
  ]);
  t.same(events(host({ service: stopped, scheduledPolicies: [] })), [], 'commands need none');
  t.end();
});

void t.test('a copy that failed is told of, and it is no failure of a backup', (t) => {
  const copy = { machine: { uuid: webUuid, name: 'web-1' }, from: 'local', to: 'vault', jobId: 'c', error };
  t.match(problemsOf(host({ failedCopies: [copy] }), bounds), [
    {
      event: 'copy-failed',
      severity: 'critical',
      storage: 'vault',
      message: 'the last copy of web-1 from local to vault failed: it is full',
      hint: 'stillpoint job show c; stillpoint replicate web-1 --from local --to vault',
    },
  ]);
  t.end();
});

void t.test('machines without any backup are a warning, in one line', (t) => {
  const never = (names: readonly string[], excluded = false) =>
    names.map((name) => machine({ name, excluded, lastBackups: [], schedule: null }));
  const [problem, ...others] = problemsOf(
    host({ machines: [machine(), ...never(['a', 'b', 'c', 'd', 'e', 'f', 'g'])] }),
    bounds,
  );
  t.match(problem, { event: 'never-backed-up', severity: 'warning' });
  t.equal(problem?.message, 'there is no backup of a, b, c, d, e and 2 more');
  t.same(others, []);
  t.same(events(host({ machines: never(['a'], true) })), [], 'nobody wants one of it');
  const silent = storage({ listedAtMs: null });
  t.same(events(host({ machines: never(['a']), storages: [silent] })), [], 'it may be in there');
  t.end();
});
