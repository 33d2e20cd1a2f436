import t from 'tap';
import type { Pruning } from '../agent/pruning.ts';
import { JobError } from '../agent/jobs/errors.ts';
import { StorageError } from '../storage/errors.ts';
import type { BackupEntry } from '../storage/storage.ts';
import { RecordedTerminal } from './fixture.ts';
import { PruneOutcomes } from './pruneOutcomes.ts';

const entries = ['01', '02', '03'].map(
  (day): BackupEntry => ({
    storage: 'local',
    directory: `/backup/web-1/202611${day}T000000.000Z`,
    id: day,
    machine: { name: 'web-1', uuid: 'u' },
    pointInTime: `2026-11-${day}T00:00:00.000Z`,
    state: 'Active',
    problem: null,
    protected: false,
    protectedReason: null,
    manifest: null,
  }),
);
const pruning: Pruning = {
  storage: 'local',
  machine: { name: 'web-1', uuid: 'u' },
  policy: 'default',
  keep: { last: 1 },
  timeZone: 'UTC',
  now: new Date(),
  skipped: null,
  decisions: entries.map((entry) => ({ entry, keep: false, reasons: [] })),
};
const [first, second, third] = entries;
if (first === undefined || second === undefined || third === undefined) throw new Error('three entries');
const busy = new JobError('MACHINE_BUSY', 'a restore reads it');
const damaged = new StorageError('BACKUP_DAMAGED', 'the last good one is damaged');
const away = new StorageError('STORAGE_UNREACHABLE', 'away');

function outcomes() {
  const recorded = new RecordedTerminal();
  const cli = { terminal: recorded.terminal, configPath: '/c.yaml', configIsNamed: false, verbose: false };
  return { recorded, told: new PruneOutcomes(cli) };
}

void t.test('the exit code says what somebody must look at first', async (t) => {
  const cases: readonly (readonly [number, readonly ('removed' | 'busy' | 'damaged' | 'away')[]])[] = [
    [0, []],
    [0, ['removed']],
    [7, ['busy']],
    [3, ['removed', 'busy']],
    [6, ['removed', 'away']],
    [5, ['removed', 'away', 'damaged', 'busy']],
  ];
  for (const [code, happened] of cases) {
    const { told } = outcomes();
    for (const what of happened) {
      if (what === 'removed') told.removed(pruning, first);
      if (what === 'busy') told.failed(pruning, second, busy);
      if (what === 'damaged') told.failed(pruning, null, damaged);
      if (what === 'away') told.failed(pruning, null, away);
    }
    t.equal(told.exitCode(0), code, happened.join(', '));
  }
  t.equal(outcomes().told.exitCode(6), 6, 'a storage that could not be looked at');
});

void t.test('each backup of a plan is told with what became of it', async (t) => {
  const { told, recorded } = outcomes();
  told.removed(pruning, { ...first });
  told.keptAfterAll(pruning, { entry: { ...second }, keep: true, reasons: ['protected'] });
  told.failed(pruning, null, away);
  t.match(told.byEntry.get(first), { removed: true, error: null });
  t.match(told.byEntry.get(second), { removed: false, reasons: ['protected'], error: null });
  t.match(told.byEntry.get(third), { removed: false, error: { code: 'STORAGE_UNREACHABLE' } });
  t.equal(recorded.stdout, 'removed web-1 at 2026-11-01T00:00:00.000Z from local\n');
  t.match(recorded.stderr, /^kept after all: .*: protected\nSTORAGE_UNREACHABLE: web-1 in local: away$/m);
});
