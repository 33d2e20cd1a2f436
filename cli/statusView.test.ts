import t from 'tap';
import { digest, host, hourMs, job, machine, nowMs, schedule, storage } from '../agent/observe/fixture.ts';
import type { HostStatus } from '../agent/observe/hostStatus.ts';
import { problemsOf } from '../agent/observe/problems.ts';
import { problemLines, statusFacts, statusJson, statusLines } from './statusView.ts';

const bounds = { overdueMs: 6 * hourMs, settleMs: 0 };
const problems = (status: HostStatus) => problemsOf(status, bounds);
const text = (lines: ReturnType<typeof statusLines>): string =>
  lines.map((line) => line.map((part) => (typeof part === 'string' ? part : part.text)).join('')).join('\n');

void t.test('a host on one page: its service, jobs, machines and storages', (t) => {
  const progress = {
    jobId: 'j',
    state: 'retaining' as const,
    step: 'retain',
    detail: 'vda',
    doneBytes: 1024 ** 3,
    totalBytes: 4 * 1024 ** 3,
    bytesPerSecond: 100 * 1024 ** 2,
    etaSeconds: 31,
  };
  const page = text(statusLines(host({ jobs: [job({ progress })] })));
  t.match(page, /^service runs for 48 h 00 min \(process 4711, version 0\.1\.0\); libvirt answers$/m);
  t.match(
    page,
    /backup +web-1 +retaining \(running\) .*retain vda, 1 GiB of 4 GiB, 100 MiB\/s, 31\.0 s left/,
  );
  t.match(page, /^web-1 +running +1 h 00 min ago +local +2026-11-23T02:00:00\.000Z/m);
  t.match(page, /^local +3 +600 B +1000 B +- +- +usable$/m);
  t.end();
});

void t.test('a host on which nothing runs says so', (t) => {
  const service = { running: false, pid: null, sinceMs: null, version: null };
  const never = machine({ lastBackups: [], lastRun: null, lastSuccess: null, schedule: null });
  const away = { code: 'HYPERVISOR_UNREACHABLE', message: 'away', retryable: true };
  const hypervisor = { unreachableSinceMs: nowMs, problem: away };
  const page = text(statusLines(host({ service, hypervisor, machines: [never], storages: [] })));
  t.match(page, /^service does not run; libvirt does not answer: away$/m);
  t.match(page, /^web-1 +running +never +- +- *$/m);
  t.notMatch(page, /STORAGE/);
  t.end();
});

void t.test('each problem is told with what to type', (t) => {
  const full = host({ storages: [storage({ state: { warning: 'it is 86 % full' } })] });
  t.equal(
    text(problemLines(problems(full))),
    'warning: it is 86 % full\nhint: stillpoint storage show local; stillpoint prune --storage local --dry-run',
  );
  t.end();
});

void t.test('who follows a host in a pipe hears of changes', (t) => {
  const before = statusFacts(host({ jobs: [job()] }), []);
  t.same(statusFacts(host({ jobs: [job()], atMs: nowMs + 1000 }), []), before, 'time alone is none');
  const parked = host({ jobs: [job({ hold: 'parked' })] });
  const after = statusFacts(parked, problems(parked));
  const changed = [...after].filter(([key, fact]) => before.get(key) !== fact).map(([, fact]) => fact);
  t.match(changed, [
    /^job .* \(backup of web-1\): retaining, parked$/,
    /^critical: backup of web-1 was left/,
  ]);
  t.end();
});

void t.test('as JSON a host says its instants in words', (t) => {
  const failed = digest({ state: 'failed', error: { code: 'NO_SPACE', message: 'full', retryable: true } });
  const status = host({
    machines: [machine({ lastRun: failed, schedule: schedule({ dueSinceMs: nowMs }) })],
  });
  t.match(statusJson(status, problems(status)), {
    at: '2026-11-22T03:00:00.000Z',
    service: { running: true, since: '2026-11-20T03:00:00.000Z' },
    libvirt: { ok: true },
    machines: [
      {
        name: 'web-1',
        lastBackups: [{ storage: 'local', pointInTime: '2026-11-22T02:00:00.000Z' }],
        lastRun: { state: 'failed', error: { code: 'NO_SPACE' } },
        lastPauseMs: 250,
        schedule: { dueSince: '2026-11-22T03:00:00.000Z' },
      },
    ],
    storages: [{ name: 'local', ok: true, listedAt: '2026-11-22T03:00:00.000Z', backups: 3 }],
    problems: [{ event: 'last-backup-failed', severity: 'critical' }],
  });
  t.notMatch(JSON.stringify(statusJson(status, [])), /sinceMs|createdAtMs/);
  t.end();
});

void t.test('a last backup is shown in the storages that have it, and not in those with older ones', (t) => {
  const newest = { atMs: nowMs - hourMs, referencedBytes: null };
  const page = text(
    statusLines(
      host({
        machines: [
          machine({
            lastBackups: [
              { storage: 'local', ...newest },
              { storage: 'cloud', ...newest },
              { storage: 'vault', atMs: nowMs - 90 * hourMs, referencedBytes: null },
            ],
          }),
        ],
      }),
    ),
  );
  t.match(page, /^web-1 +running +1 h 00 min ago +local cloud +2026/m);
  t.end();
});

void t.test('a host without any schedule says that nothing is backed up by itself', (t) => {
  const line = /^no policy has a schedule: machines are backed up by command only$/m;
  t.match(text(statusLines(host({ scheduledPolicies: [] }))), line);
  t.notMatch(text(statusLines(host())), line);
  t.end();
});
