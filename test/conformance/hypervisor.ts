import { randomUUID } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';

import type { Test } from 'tap';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { HypervisorEvent } from '../../agent/hypervisor/hypervisor.ts';
import { readImageInfo, readImageMap } from '../../common/qemuImage.ts';
import type { ConformanceMachine, HypervisorFixture } from './hypervisorFixture.ts';
import {
  EventRecording,
  correctedDefinition,
  freshState,
  liveChain,
  magic,
  putOverlay,
  until,
} from './hypervisorFixture.ts';
import { liveSnapshots } from './liveSnapshots.ts';
import { checkpoints } from './checkpoints.ts';
import { guests } from './guests.ts';
import { pullBackups } from './pullBackups.ts';
import { transientMachines } from './transientMachines.ts';

type Suite = (t: Test, fixture: HypervisorFixture) => void;

const slowBytesPerSecond = 1024 * 1024;
const oneVolume = [{ target: 'vda' }];

/**
 * What every implementation of the `Hypervisor` port promises: the real libvirt and the simulator of the
 * unit tests run the same.
 */
export async function hypervisorConformance(
  t: Test,
  makeFixture: () => Promise<HypervisorFixture>,
): Promise<void> {
  await using fixture = await makeFixture();
  for (const part of [
    machines,
    definitions,
    states,
    merges,
    liveSnapshots,
    pullBackups,
    checkpoints,
    guests,
    transientMachines,
    events,
    hosts,
  ])
    part(t, fixture);
  // The subtests run one after the other; the fixture lives until the last one has ended.
  await t.test('nothing is left in use', async (t) => {
    for (const machine of await fixture.hypervisor.machines()) {
      t.match(machine.status.state, 'shut-off', `${machine.name} was powered off`);
    }
  });
}

const machines: Suite = (t, fixture) => {
  const { hypervisor } = fixture;
  void t.test('a machine is found by its name and by its UUID, and nothing else is', async (t) => {
    const { uuid, name } = await fixture.createMachine({ volumes: oneVolume, running: false });
    const expected = { uuid, name, persistent: true, autostart: false, hasManagedSave: false };
    t.match(await hypervisor.findMachine(name), expected);
    t.match(await hypervisor.findMachine(uuid), expected);
    t.match(await hypervisor.machine(uuid), { ...expected, status: { state: 'shut-off' } });
    t.match(
      (await hypervisor.machines()).find((machine) => machine.uuid === uuid),
      expected,
    );
    await t.rejects(hypervisor.findMachine(`${name}-other`), { code: 'MACHINE_NOT_FOUND' });
    await t.rejects(hypervisor.findMachine(randomUUID()), { code: 'MACHINE_NOT_FOUND' });
    await t.rejects(hypervisor.machine(randomUUID()), { code: 'MACHINE_NOT_FOUND' });
    await t.rejects(hypervisor.status(randomUUID()), { code: 'MACHINE_NOT_FOUND' });
  });

  void t.test('state and reason follow start, suspend, resume and power off', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: false });
    await hypervisor.start(uuid);
    t.same(await hypervisor.status(uuid), { state: 'running', reason: 'booted' });
    await hypervisor.suspend(uuid);
    t.same(await hypervisor.status(uuid), { state: 'paused', reason: 'user' });
    await hypervisor.resume(uuid);
    t.same(await hypervisor.status(uuid), { state: 'running', reason: 'unpaused' });
    await hypervisor.powerOff(uuid);
    t.same(await hypervisor.status(uuid), { state: 'shut-off', reason: 'destroyed' });
    await hypervisor.start(uuid, { paused: true });
    t.match(await hypervisor.status(uuid), { state: 'paused' });
    await hypervisor.powerOff(uuid);
  });

  void t.test('a machine that is off is neither saved nor suspended nor merged', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: false });
    const file = freshState(fixture);
    const definition = await hypervisor.definition(uuid, 'persistent-secure');
    const pull = { target: 'vda', bandwidthBytesPerSecond: 0 };
    await t.rejects(hypervisor.save(uuid, { file, definition }), { code: 'MACHINE_STATE_INVALID' });
    await t.rejects(hypervisor.suspend(uuid), { code: 'MACHINE_STATE_INVALID' });
    await t.rejects(hypervisor.resume(uuid), { code: 'MACHINE_STATE_INVALID' });
    await t.rejects(hypervisor.powerOff(uuid), { code: 'MACHINE_STATE_INVALID' });
    await t.rejects(hypervisor.pull(uuid, pull), { code: 'MACHINE_STATE_INVALID' });
    await t.rejects(hypervisor.flushVolume(uuid, 'vda'), { code: 'MACHINE_STATE_INVALID' });
    await t.rejects(hypervisor.abortJob(uuid), { code: 'MACHINE_STATE_INVALID' });
  });
};

const definitions: Suite = (t, fixture) => {
  const { hypervisor } = fixture;

  void t.test('autostart is what it was set to', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: false });
    await hypervisor.setAutostart(uuid, true);
    t.equal((await hypervisor.machine(uuid)).autostart, true);
    await hypervisor.setAutostart(uuid, false);
    t.equal((await hypervisor.machine(uuid)).autostart, false);
  });

  void t.test('a definition that was removed can be stored again without loss', async (t) => {
    const { uuid, name } = await fixture.createMachine({ volumes: oneVolume, running: false });
    const before = await hypervisor.definition(uuid, 'persistent-secure');
    await hypervisor.undefine(uuid);
    await t.rejects(hypervisor.machine(uuid), { code: 'MACHINE_NOT_FOUND' });
    await hypervisor.define(before);
    t.match(await hypervisor.findMachine(name), { uuid, persistent: true });
    // libvirt may list devices in another order.
    const after = await hypervisor.definition(uuid, 'persistent-secure');
    t.same(after.split('\n').toSorted(), before.split('\n').toSorted());
  });

  void t.test('storing and removing a definition leaves the running machine alone', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: true });
    const before = await hypervisor.definition(uuid, 'persistent-secure');
    await hypervisor.undefine(uuid);
    t.match(await hypervisor.machine(uuid), { persistent: false, status: { state: 'running' } });
    await hypervisor.define(before);
    t.match(await hypervisor.machine(uuid), { persistent: true, status: { state: 'running' } });
    await hypervisor.powerOff(uuid);
    t.match(await hypervisor.status(uuid), { state: 'shut-off' });
  });

  void t.test('what is no definition is refused', async (t) => {
    await t.rejects(hypervisor.define('<domain'), { code: 'DEFINITION_INVALID' });
  });
};

const states: Suite = (t, fixture) => {
  const { hypervisor } = fixture;

  void t.test('a saved machine goes on from its state on an overlay over its frozen image', async (t) => {
    const machine = await fixture.createMachine({ volumes: oneVolume, running: true });
    const { uuid } = machine;
    const file = freshState(fixture);
    await hypervisor.save(uuid, { file, definition: await correctedDefinition(hypervisor, uuid) });
    t.same(await hypervisor.status(uuid), { state: 'shut-off', reason: 'saved' });
    t.equal(await magic(file), 'LibvirtQemudSave', 'the state file says that it is complete');
    const stored = DomainXml.parse(await hypervisor.stateDefinition(file));
    t.match(stored, { uuid }, 'the state file holds the definition');
    t.equal(stored.volume('vda').backingChain, undefined, 'which says nothing about chains');

    const image = machine.imagePath('vda');
    const { frozen } = await putOverlay(image);
    await hypervisor.restoreState({ file, paused: true });
    t.match(await hypervisor.status(uuid), { state: 'paused' });
    t.same(await liveChain(hypervisor, uuid, 'vda'), [image, frozen]);
    await hypervisor.resume(uuid);
    t.match(await hypervisor.status(uuid), { state: 'running' });
    await hypervisor.powerOff(uuid);
  });

  void t.test('a state is restored with the definition that is given', async (t) => {
    const machine = await fixture.createMachine({ volumes: oneVolume, running: true });
    const { uuid } = machine;
    const file = freshState(fixture);
    const definition = await correctedDefinition(hypervisor, uuid);
    await hypervisor.save(uuid, { file, definition });
    const { frozen } = await putOverlay(machine.imagePath('vda'));
    const other = DomainXml.parse(definition);
    other.setVolumePath('vda', frozen);
    await hypervisor.restoreState({ file, definition: other.toString(), paused: false });
    t.match(await hypervisor.status(uuid), { state: 'running' });
    t.same(await liveChain(hypervisor, uuid, 'vda'), [frozen]);
    await hypervisor.powerOff(uuid);
  });

  void t.test('a save overwrites nothing, and the machine runs on', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: true });
    const definition = await correctedDefinition(hypervisor, uuid);
    const file = freshState(fixture);
    await writeFile(file, 'somebody else wrote this');
    await t.rejects(hypervisor.save(uuid, { file, definition }), { code: 'OPERATION_FAILED' });
    t.equal(await readFile(file, 'utf8'), 'somebody else wrote this');
    await t.rejects(hypervisor.save(uuid, { file: 'state', definition }), { code: 'OPERATION_FAILED' });
    t.match(await hypervisor.status(uuid), { state: 'running' });
    await hypervisor.powerOff(uuid);
  });

  void t.test('a save that was aborted before it began leaves the machine running', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: true });
    const definition = await correctedDefinition(hypervisor, uuid);
    const save = { file: freshState(fixture), definition, signal: AbortSignal.abort() };
    await t.rejects(hypervisor.save(uuid, save), { code: 'OPERATION_ABORTED' });
    t.match(await hypervisor.status(uuid), { state: 'running' });
    await hypervisor.powerOff(uuid);
  });

  void t.test('a truncated state is not restored, and the machine can still be started', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: true });
    const file = freshState(fixture);
    await hypervisor.save(uuid, { file, definition: await correctedDefinition(hypervisor, uuid) });
    const whole = await readFile(file);
    for (const lengthBytes of [60, Math.floor(whole.length / 2)]) {
      const truncated = freshState(fixture);
      await writeFile(truncated, whole.subarray(0, lengthBytes));
      await t.rejects(hypervisor.restoreState({ file: truncated, paused: true }), {
        code: 'OPERATION_FAILED',
      });
      t.match(await hypervisor.status(uuid), { state: 'shut-off' });
    }
    await t.rejects(hypervisor.restoreState({ file: freshState(fixture), paused: true }), {
      code: 'OPERATION_FAILED',
    });
    await hypervisor.start(uuid);
    await hypervisor.powerOff(uuid);
  });
};

const merges: Suite = (t, fixture) => {
  const { hypervisor } = fixture;

  void t.test('a pull brings a volume back to one image and tells its progress', async (t) => {
    const { machine, image } = await runningOnOverlay(fixture);
    const { uuid } = machine;
    await using recording = await EventRecording.start(hypervisor);
    {
      using _held = fixture.holdBlockJobs?.();
      await hypervisor.pull(uuid, { target: 'vda', bandwidthBytesPerSecond: slowBytesPerSecond });
      const job = await hypervisor.blockJob(uuid, 'vda');
      t.match(job, { kind: 'pull', bandwidthBytesPerSecond: slowBytesPerSecond });
      t.ok((job?.currentBytes ?? 0) < (job?.endBytes ?? 0), 'there is something to do yet');
      await t.rejects(hypervisor.pull(uuid, { target: 'vda', bandwidthBytesPerSecond: 0 }), {
        name: 'HypervisorError',
      });
      await hypervisor.setBlockJobBandwidth(uuid, 'vda', 0);
    }
    const end = await recording.until((event) => event.kind === 'block-job' && event.uuid === uuid);
    t.match(end, { target: 'vda', status: 'completed' });
    await until(async () => (await hypervisor.blockJob(uuid, 'vda')) === null);
    t.same(await liveChain(hypervisor, uuid, 'vda'), [image]);
    t.equal((await readImageInfo(image, 'qcow2', { inUse: true })).backing, null);
    await hypervisor.powerOff(uuid);
  });

  void t.test('a pull with a base stops above it', async (t) => {
    const template = await fixture.createMachine({ volumes: oneVolume, running: false });
    const base = template.imagePath('vda');
    const { machine, image } = await runningOnOverlay(fixture, base);
    const { uuid } = machine;
    await using recording = await EventRecording.start(hypervisor);
    await hypervisor.pull(uuid, { target: 'vda', base, bandwidthBytesPerSecond: 0 });
    await recording.until((event) => event.kind === 'block-job' && event.status === 'completed');
    await until(async () => (await hypervisor.blockJob(uuid, 'vda')) === null);
    t.same(await liveChain(hypervisor, uuid, 'vda'), [image, base]);
    t.match(await readImageInfo(image, 'qcow2', { inUse: true }), { backing: { path: base } });
    await hypervisor.powerOff(uuid);
  });

  void t.test('an aborted pull leaves the chain as it was, and can be begun again', async (t) => {
    const { machine, image, frozen } = await runningOnOverlay(fixture);
    const { uuid } = machine;
    await using recording = await EventRecording.start(hypervisor);
    {
      using _held = fixture.holdBlockJobs?.();
      await hypervisor.pull(uuid, { target: 'vda', bandwidthBytesPerSecond: slowBytesPerSecond });
      await hypervisor.abortBlockJob(uuid, 'vda');
    }
    t.equal(await hypervisor.blockJob(uuid, 'vda'), null);
    await recording.until((event) => event.kind === 'block-job' && event.status === 'canceled');
    t.same(await liveChain(hypervisor, uuid, 'vda'), [image, frozen]);
    await hypervisor.pull(uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
    await recording.until((event) => event.kind === 'block-job' && event.status === 'completed');
    await hypervisor.powerOff(uuid);
  });

  void t.test('a volume that does not exist is refused, and what nobody made is not there', async (t) => {
    const { machine } = await runningOnOverlay(fixture);
    await t.rejects(hypervisor.flushVolume(machine.uuid, 'vdz'), { name: 'HypervisorError' });
    t.same(await hypervisor.snapshotNames(machine.uuid), []);
    t.same(await hypervisor.checkpointNames(machine.uuid), []);
    await hypervisor.powerOff(machine.uuid);
  });

  const killQemu = fixture.externally?.killQemu;
  if (killQemu === undefined) return;
  void t.test('a merge of a paused machine, once flushed, survives the end of QEMU', async (t) => {
    const { machine, image } = await runningOnOverlay(fixture);
    const { uuid } = machine;
    await using recording = await EventRecording.start(hypervisor);
    await hypervisor.suspend(uuid);
    await hypervisor.pull(uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
    await recording.until((event) => event.kind === 'block-job' && event.status === 'completed');
    await hypervisor.flushVolume(uuid, 'vda');
    await killQemu(machine.name);
    await recording.until((event) => event.kind === 'lifecycle' && event.event === 'stopped');
    t.same(await hypervisor.status(uuid), { state: 'shut-off', reason: 'crashed' });
    t.equal((await readImageInfo(image, 'qcow2')).backing, null);
    const extents = await readImageMap(image, 'qcow2');
    t.ok(
      extents.some(({ present }) => present),
      'the content is in the image',
    );
  });
};

const events: Suite = (t, fixture) => {
  const { hypervisor } = fixture;

  void t.test('the events of a save and restore come in order and tell the pause', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: true });
    await using recording = await EventRecording.start(hypervisor);
    const file = freshState(fixture);
    const beforeMs = monotonicMs();
    await hypervisor.save(uuid, { file, definition: await correctedDefinition(hypervisor, uuid) });
    await hypervisor.restoreState({ file, paused: true });
    await hypervisor.resume(uuid);
    await recording.until(
      (event) => event.kind === 'lifecycle' && event.uuid === uuid && event.event === 'resumed',
    );
    const afterMs = monotonicMs();

    const names = recording.lifecycle(uuid);
    const order = ['suspended', 'stopped', 'started', 'resumed'].map((name) => names.indexOf(name));
    t.notOk(order.includes(-1), `each came: ${names.join(', ')}`);
    t.same(
      order,
      order.toSorted((a, b) => a - b),
      'in the order in which it happened',
    );
    const times = [beforeMs, ...recording.events.map((event) => event.monotonicMs), afterMs];
    t.same(
      times,
      times.toSorted((a, b) => a - b),
      'with the clock that this process has',
    );
    await hypervisor.powerOff(uuid);
  });

  void t.test('every subscriber hears everything until it leaves', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: true });
    const isSuspended = (event: HypervisorEvent): boolean =>
      event.kind === 'lifecycle' && event.uuid === uuid && event.event === 'suspended';
    await using first = await EventRecording.start(hypervisor);
    await using second = await EventRecording.start(hypervisor);
    await hypervisor.suspend(uuid);
    t.same(await first.until(isSuspended), await second.until(isSuspended));
    await first.stop();
    const heard = first.events.length;
    await hypervisor.resume(uuid);
    await second.until((event) => event.kind === 'lifecycle' && event.event === 'resumed');
    t.equal(first.events.length, heard, 'the one that left hears nothing');
    await hypervisor.powerOff(uuid);
  });
};

const hosts: Suite = (t, fixture) => {
  const { hypervisor } = fixture;

  void t.test('the host says who it is', async (t) => {
    const version = /^\d+\.\d+\.\d+$/;
    t.match(await hypervisor.hostInfo(), { hostName: /./, libvirtVersion: version, qemuVersion: version });
    t.match(await hypervisor.defaultUser(), { uid: Number, gid: Number });
    const offers = (model: string): Promise<boolean> => {
      const cpu = `<cpu mode='custom' match='exact'><model fallback='forbid'>${model}</model></cpu>`;
      return hypervisor.offersProcessor({ arch: 'x86_64', virtType: 'qemu', cpu });
    };
    t.ok(await offers('qemu64'));
    t.notOk(await offers('athlon'), 'an emulated machine cannot have 3DNow!');
    await t.rejects(offers('no-such-model'), { code: 'OPERATION_FAILED' });
    for (const { kind, uuid, definition } of await hypervisor.hostDefinitions())
      t.ok(definition.includes(uuid), `the definition of a ${kind} names it`);
  });

  const { stall, restartHypervisor } = fixture.externally ?? {};
  if (stall !== undefined) {
    void t.test('a hypervisor that hangs holds nobody up longer than the deadline', async (t) => {
      const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: false });
      {
        await using _stalled = await stall.begin();
        const startMs = performance.now();
        const calls = [hypervisor.status(uuid), hypervisor.machines(), hypervisor.definition(uuid, 'live')];
        for (const { status } of await Promise.allSettled(calls)) t.equal(status, 'rejected');
        await t.rejects(hypervisor.status(uuid), { code: 'DEADLINE_EXCEEDED', retryable: true });
        t.ok(performance.now() - startMs < 2 * stall.deadlineMs + 1_000, 'within the deadline');
      }
      t.match(await hypervisor.status(uuid), { state: 'shut-off' }, 'and answers when it goes on');
    });
  }
  if (restartHypervisor !== undefined) {
    void t.test('after a restart of the hypervisor calls and events go on, and listeners know', async (t) => {
      const { uuid } = await fixture.createMachine({ volumes: oneVolume, running: true });
      await using recording = await EventRecording.start(hypervisor);
      t.match(await hypervisor.status(uuid), { state: 'running' });
      await restartHypervisor();
      await recording.until(({ kind }) => kind === 'reconnected');
      t.match(await hypervisor.status(uuid), { state: 'running' });
      await hypervisor.suspend(uuid);
      await recording.until((event) => event.kind === 'lifecycle' && event.event === 'suspended');
      await hypervisor.powerOff(uuid);
    });
  }
};

/** A running machine whose only volume has an empty overlay over a frozen image over, if given, a template. */
async function runningOnOverlay(
  fixture: HypervisorFixture,
  backing?: string,
): Promise<{ machine: ConformanceMachine; image: string; frozen: string }> {
  const machine = await fixture.createMachine({ volumes: [{ target: 'vda', backing }], running: false });
  const image = machine.imagePath('vda');
  const { frozen } = await putOverlay(image);
  await fixture.hypervisor.start(machine.uuid);
  return { machine, image, frozen };
}

function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
