import t from 'tap';

import type { BackupEntry } from '../../storage/storage.ts';
import type { MachineSummary } from '../hypervisor/hypervisor.ts';
import { alertTelling, type Telling } from './alerts.ts';
import { backupTellings } from './backupReports.ts';
import type { ToldSubject } from './outbox.ts';
import { machineTellings } from './siteReports.ts';

/** What the outbox would remember. */
class Memory {
  readonly #told = new Map<string, ToldSubject>();

  get told(): ReadonlyMap<string, ToldSubject> {
    return this.#told;
  }

  take(tellings: readonly Telling[]) {
    for (const { told } of tellings) {
      if (told.seen === null) this.#told.delete(told.subject);
      else this.#told.set(told.subject, { seen: told.seen, isSure: true });
    }
    return tellings.map(({ report }) => report.body.value);
  }

  /** Another controller may listen from now on. */
  doubt(): void {
    for (const [subject, { seen }] of this.#told) this.#told.set(subject, { seen, isSure: false });
  }
}

const machine = (name: string, state: MachineSummary['status']['state']): MachineSummary => ({
  uuid: `uuid of ${name}`,
  name,
  status: { state, reason: 'unknown' },
  persistent: true,
  autostart: false,
  hasManagedSave: false,
});

void t.test('a machine is told when it has changed, and when it is gone', (t) => {
  const memory = new Memory();
  const look = (...machines: MachineSummary[]) => memory.take(machineTellings(memory.told, machines));
  t.match(look(machine('a', 'running'), machine('b', 'shut-off')), [{ name: 'a' }, { name: 'b' }]);
  t.same(look(machine('a', 'running'), machine('b', 'shut-off')), []);
  const paused = look(machine('a', 'paused'), machine('b', 'shut-off'));
  t.match(paused, [{ name: 'a', present: true, state: 'paused' }]);
  t.equal(paused.length, 1);
  t.match(look(machine('a', 'paused')), [{ uuid: 'uuid of b', name: 'b', present: false }]);
  t.same(look(machine('a', 'paused')), [], 'once');
  t.match(look(machine('a', 'paused'), machine('b', 'running')), [{ name: 'b', present: true }]);
  t.end();
});

const entry = (place: string, more: Partial<BackupEntry> = {}): BackupEntry => ({
  storage: 'local',
  directory: place,
  id: `id of ${place}`,
  machine: { name: 'm', uuid: 'uuid of m' },
  pointInTime: '2026-11-22T02:00:00.000Z',
  state: 'Active',
  problem: null,
  protected: false,
  protectedReason: null,
  manifest: null,
  ...more,
});

void t.test('backups are told when they were made, checked, changed and deleted, whoever did it', (t) => {
  const memory = new Memory();
  const look = (storage: string, ...entries: BackupEntry[]) =>
    memory.take(backupTellings(memory.told, storage, entries));
  t.match(look('local', entry('a'), entry('b')), [
    { change: 1, place: 'a', backupId: 'id of a' },
    { change: 1, place: 'b' },
  ]);
  t.match(look('local-2', entry('a')), [{ change: 1, storage: 'local-2' }], 'a copy is one of its own');
  t.same(look('local', entry('a'), entry('b')), []);
  const at = '2026-11-23T02:00:00.000Z';
  t.match(look('local', entry('a', { dataVerified: { at, ok: false } }), entry('b')), [
    { change: 2, place: 'a', dataVerification: { time: new Date(at), ok: false } },
  ]);
  const killed = entry('a', { dataVerified: { at, ok: false }, state: 'Killed', problem: 'damaged' });
  t.match(look('local', killed, entry('b')), [{ change: 3, state: 'Killed', problem: 'damaged' }]);
  t.match(look('local', killed), [{ change: 4, place: 'b', backupId: 'id of b', machineName: 'm' }]);
  t.same(look('local', killed), [], 'once');
  t.end();
});

void t.test('an alert is raised once, whatever figures its message has, and ended once', (t) => {
  const memory = new Memory();
  const look = (message: string | null, code = 'STORAGE_FULL') => {
    const error = message === null ? null : { code, message, retryable: false };
    return memory.take([alertTelling(memory.told, 'storage/a/filling', error) ?? []].flat());
  };
  t.same(look(null), []);
  t.match(look('91 % full'), [{ raised: true, error: { message: '91 % full' } }]);
  t.same(look('92 % full'), []);
  t.match(look('away', 'STORAGE_UNREACHABLE'), [{ raised: true }], 'something else is wrong');
  t.match(look(null), [{ raised: false, error: { message: 'away' } }]);
  t.same(look(null), []);
  t.end();
});

void t.test('where it is not sure what the controller knows, all is told again, and what has gone', (t) => {
  const machines = new Memory();
  const lookAt = (...all: MachineSummary[]) => machines.take(machineTellings(machines.told, all));
  lookAt(machine('a', 'running'), machine('b', 'running'));
  machines.doubt();
  t.match(lookAt(machine('a', 'running')), [
    { name: 'a', present: true },
    { name: 'b', present: false },
  ]);
  t.same(lookAt(machine('a', 'running')), [], 'once');
  const backups = new Memory();
  const list = (...all: BackupEntry[]) => backups.take(backupTellings(backups.told, 'local', all));
  list(entry('a'), entry('b'));
  backups.doubt();
  t.match(list(entry('a')), [
    { change: 1, place: 'a' },
    { change: 4, place: 'b' },
  ]);
  t.same(list(entry('a')), [], 'once');
  const alerts = new Memory();
  const error = { code: 'STORAGE_FULL', message: 'full', retryable: false };
  const look = (wrong: typeof error | null) =>
    alerts.take([alertTelling(alerts.told, 'k', wrong) ?? []].flat());
  look(error);
  alerts.doubt();
  t.match(look(error), [{ raised: true }]);
  t.same(look(error), [], 'once');
  alerts.doubt();
  t.match(look(null), [{ raised: false }]);
  t.end();
});
