import t from 'tap';
import type { Alert } from './alert.ts';
import { compareAlerts } from './alertBook.ts';
import { host, storage } from './fixture.ts';
import type { Problem } from './problems.ts';

const problem = (change: Partial<Problem> = {}): Problem => ({
  key: 'storage-full:local',
  event: 'storage-full',
  severity: 'warning',
  machine: null,
  storage: 'local',
  jobId: null,
  message: 'it is nearly full',
  hint: 'make room',
  ...change,
});
const known = host();

/** Goes through looks one after the other; what was told at each. */
function told(looks: readonly (readonly Problem[])[], about = known): readonly (readonly string[])[] {
  let open: readonly Alert[] = [];
  return looks.map((problems) => {
    const change = compareAlerts(open, problems, about);
    open = change.open;
    return change.notices.map(({ status, alert }) => `${status} ${alert.event} ${alert.severity}`);
  });
}

void t.test('an alert is told once while it lasts, and once when it is over', (t) => {
  const changed = problem({ message: 'it is a little fuller' });
  t.same(told([[problem()], [changed], [], []]), [
    ['firing storage-full warning'],
    [],
    ['resolved storage-full warning'],
    [],
  ]);
  t.end();
});

void t.test('one that comes back is another one, and one that becomes worse is the same', (t) => {
  const first = compareAlerts([], [problem()], known);
  const worse = compareAlerts(first.open, [problem({ severity: 'critical' })], known);
  t.equal(worse.notices[0]?.alert.id, first.notices[0]?.alert.id);
  t.match(worse.notices, [{ status: 'firing', alert: { severity: 'critical' } }]);
  const over = compareAlerts(worse.open, [], known);
  const again = compareAlerts(over.open, [problem()], known);
  t.not(again.notices[0]?.alert.id, first.notices[0]?.alert.id);
  t.end();
});

void t.test('what a storage that has not answered yet would say is not taken for over', (t) => {
  const { open } = compareAlerts([], [problem()], known);
  const justStarted = host({ storages: [], unseenStorages: ['local'] });
  t.same(compareAlerts(open, [], justStarted).notices, []);
  const silent = host({ storages: [storage({ listedAtMs: null })] });
  t.same(compareAlerts(open, [], silent).notices, []);
  const removed = host({ storages: [] });
  t.match(
    compareAlerts(open, [], removed).notices,
    [{ status: 'resolved' }],
    'it is not configured any more',
  );
  t.end();
});

void t.test(
  'a copy that a policy asks for and that failed is an alert, for its machine and the storage',
  (t) => {
    const copy = problem({ key: 'copy-failed:u:vault', event: 'copy-failed', storage: 'vault' });
    const first = compareAlerts([], [copy], host({ storages: [storage({ name: 'vault' })] }));
    t.match(first.notices, [{ status: 'firing', alert: { event: 'copy-failed', storage: 'vault' } }]);
    const over = compareAlerts(first.open, [], host({ storages: [storage({ name: 'vault' })] }));
    t.match(over.notices, [{ status: 'resolved', alert: { event: 'copy-failed' } }]);
    t.end();
  },
);

void t.test('a failure that is tried again, or that somebody saw himself, is no alert', (t) => {
  t.same(told([[problem({ key: 'x', event: 'last-backup-failed' })]]), [[]]);
  t.end();
});
