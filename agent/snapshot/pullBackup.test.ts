import t from 'tap';
import type { MachineStatus } from '../hypervisor/hypervisor.ts';
import { resumeAfterFull } from './pullBackup.ts';

const running: MachineStatus = { state: 'running', reason: 'unpaused' };
const stopped: MachineStatus = { state: 'paused', reason: 'io-error' };
const machine = { uuid: 'm', name: 'm', persistent: true, autostart: false, hasManagedSave: false };
const patience = { resumeMaxMs: 500, lookMs: 5, calmMs: 50 };

/** A machine that shows these states one look after the other, the last one for ever. */
function machineOf(...states: readonly MachineStatus[]) {
  const seen = { resumed: 0, looks: 0 };
  const hypervisor = {
    machines: () => {
      const status = states[Math.min(seen.looks, states.length - 1)] ?? running;
      seen.looks += 1;
      return Promise.resolve([{ ...machine, status }]);
    },
    resume: () => {
      seen.resumed += 1;
      return Promise.resolve();
    },
  };
  return { hypervisor, seen };
}

void t.test('a guest that runs is left alone, after one look', async (t) => {
  const { hypervisor, seen } = machineOf(running);
  t.equal(await resumeAfterFull(hypervisor, 'm', false, patience), 'runs');
  t.same(seen, { resumed: 0, looks: 1 });
});

void t.test('a guest that stops again, or only after the first look, is resumed until it runs', async (t) => {
  const again = machineOf(stopped, running, stopped, stopped, running);
  t.equal(await resumeAfterFull(again.hypervisor, 'm', false, patience), 'runs-again');
  t.equal(again.seen.resumed, 3);
  const late = machineOf(running, running, stopped, running);
  t.equal(await resumeAfterFull(late.hypervisor, 'm', true, patience), 'runs-again');
  t.equal(late.seen.resumed, 1);
});

void t.test('a guest without room is given up after a while', async (t) => {
  t.equal(await resumeAfterFull(machineOf(stopped).hypervisor, 'm', true, patience), 'stands-still');
});

void t.test('a guest that somebody else has stopped is not resumed', async (t) => {
  const { hypervisor, seen } = machineOf({ state: 'paused', reason: 'user' });
  t.equal(await resumeAfterFull(hypervisor, 'm', true, patience), 'runs');
  t.equal(seen.resumed, 0);
});
