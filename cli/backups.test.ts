import t from 'tap';
import { StoredBackups } from '../agent/storedBackups.ts';
import { StorageError } from '../storage/errors.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import { findBackup } from './backups.ts';
import { machinesWithoutWhole } from './commands/list.ts';
import { RecordedTerminal } from './fixture.ts';

function entryOf(day: string, changes: Partial<BackupEntry> = {}): BackupEntry {
  return {
    storage: 'local',
    directory: `/backup/web-1/202611${day}T000000.000Z`,
    id: `0000000${day}`,
    machine: { name: 'web-1', uuid: 'u' },
    pointInTime: `2026-11-${day}T00:00:00.000Z`,
    state: 'Active',
    problem: null,
    protected: false,
    protectedReason: null,
    manifest: null,
    ...changes,
  };
}

const killed = {
  state: 'Killed',
  problem: 'vda is missing',
  machine: { name: 'web-1', uuid: null },
} as const;

/** A storage that holds these; `latest` is the last one that is whole. */
function storageOf(entries: readonly BackupEntry[], { name = 'local', reads = true } = {}): Storage {
  const storage: Pick<Storage, 'name' | 'list' | 'find' | 'requireReading'> = {
    name,
    requireReading: async () => {
      if (!reads) throw new StorageError('STORAGE_DENIED', 'its key only writes');
    },
    list: async () => entries,
    find: async (reference) => {
      const whole = entries.findLast(({ state }) => state === 'Active');
      if (whole === undefined) throw new StorageError('BACKUP_NOT_FOUND', `there is no backup ${reference}`);
      return whole;
    },
  };
  // Only these are asked for.
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion
  return storage as Storage;
}

function backupsOf(entries: readonly BackupEntry[]): StoredBackups {
  return backupsIn(storageOf(entries));
}

function backupsIn(...storages: readonly Storage[]): StoredBackups {
  const byName = new Map(storages.map((storage) => [storage.name, storage]));
  return new StoredBackups({ storages: byName, configPath: '/etc/c.yaml' });
}

void t.test('who is to read a backup gets a copy that this host can read, if there is one', async (t) => {
  const remote = entryOf('03', { storage: 'remote' });
  const vault = storageOf([remote], { name: 'remote', reads: false });
  const local = (...entries: BackupEntry[]): Storage => storageOf(entries);
  const found = async (...storages: Storage[]): Promise<string> =>
    (await backupsIn(...storages).findReadable('web-1@latest')).storage;
  t.equal(await found(vault, local(entryOf('03'))), 'local');
  t.equal(await found(vault, local(entryOf('03', killed), entryOf('02'))), 'remote', 'never another backup');
  t.equal(await found(vault), 'remote');
  const dataVerified = { at: '2026-11-04T00:00:00.000Z', ok: false };
  const damaged = (storage: string): BackupEntry => entryOf('03', { storage, dataVerified });
  const other = storageOf([remote], { name: 'remote' });
  t.equal(await found(local(damaged('local')), other), 'remote', 'nor one that was seen damaged');
  const others = storageOf([damaged('remote')], { name: 'remote' });
  t.equal(await found(local(damaged('local')), others), 'local', 'unless all of them were');
  t.equal(await found(storageOf([remote], { name: 'remote' }), local(entryOf('03'))), 'remote');
});

void t.test(
  'MACHINE@latest tells of each newer backup that it passes over because it is damaged',
  async (t) => {
    const recorded = new RecordedTerminal();
    const backups = backupsOf([entryOf('01', killed), entryOf('02'), entryOf('03', killed)]);
    t.equal((await findBackup(recorded, backups, 'web-1@latest')).id, '000000002');
    t.match(
      recorded.stderr,
      /web-1@latest is 2026-11-02.*the newer .*20261103T.* is damaged \(vda is missing\)/,
    );
    t.notMatch(recorded.stderr, /20261101T/, 'an older one is not passed over');
  },
);

void t.test('MACHINE@latest tells nothing when the newest is whole, nor does an id', async (t) => {
  const recorded = new RecordedTerminal();
  await findBackup(recorded, backupsOf([entryOf('01', killed), entryOf('02')]), 'web-1@latest');
  await findBackup(recorded, backupsOf([entryOf('02'), entryOf('03', killed)]), '000000002');
  await findBackup(
    recorded,
    backupsOf([entryOf('02'), entryOf('03', { ...killed, machine: { name: 'web-1', uuid: 'other' } })]),
    'web-1@latest',
  );
  t.equal(recorded.stderr, '');
});

void t.test('a machine all of whose backups are damaged is told of by its name', async (t) => {
  const row = (entry: BackupEntry): Pick<BackupEntry, 'state'> & { entry: BackupEntry } => ({
    entry,
    state: entry.state,
  });
  const other = { machine: { name: 'db-1', uuid: 'v' } };
  t.same(machinesWithoutWhole([entryOf('01', killed), entryOf('02', { ...killed, ...other })].map(row)), [
    'web-1',
    'db-1',
  ]);
  t.same(
    machinesWithoutWhole(
      [entryOf('01', killed), entryOf('02'), entryOf('03', { ...killed, ...other })].map(row),
    ),
    ['db-1'],
  );
  t.same(machinesWithoutWhole([]), []);
});
