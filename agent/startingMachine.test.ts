import t from 'tap';
import type { MachineStatus, MachineSummary } from './hypervisor/hypervisor.ts';
import { whenStarted } from './startingMachine.ts';

const starting: MachineStatus = { state: 'paused', reason: 'starting-up' };

/** A machine with these statuses, one with each look. */
function machineWith(statuses: readonly MachineStatus[]) {
  const left = [...statuses];
  let looks = 0;
  const machine = async (uuid: string): Promise<MachineSummary> => {
    looks += 1;
    const status = left.shift();
    if (status === undefined) throw new Error('looked at too often');
    return { uuid, name: 'm', status, persistent: true, autostart: false, hasManagedSave: false };
  };
  return { machine, looks: () => looks };
}

void t.test('a machine that is being started is looked at until it has begun', async (t) => {
  const host = machineWith([starting, starting, starting, { state: 'running', reason: 'booted' }]);
  const begun = await whenStarted(host, await host.machine('u'));
  t.match(begun, { uuid: 'u', status: { state: 'running' } });
  t.equal(host.looks(), 4);
});

void t.test('a machine that is off, runs, or was suspended by its owner is not waited for', async (t) => {
  for (const status of [
    { state: 'shut-off', reason: 'shutdown' },
    { state: 'running', reason: 'booted' },
    { state: 'paused', reason: 'user' },
  ] as const) {
    const host = machineWith([status]);
    t.match(await whenStarted(host, await host.machine('u')), { status });
    t.equal(host.looks(), 1);
  }
});

void t.test('a machine whose start fails is off', async (t) => {
  const host = machineWith([starting, { state: 'shut-off', reason: 'failed' }]);
  t.match(await whenStarted(host, await host.machine('u')), { status: { state: 'shut-off' } });
});
