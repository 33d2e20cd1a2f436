import { chmod, stat, writeFile } from 'node:fs/promises';

import type { Test } from 'tap';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { createOverlay, readImageInfo } from '../../common/qemuImage.ts';
import type { ConformanceMachine, HypervisorFixture } from './hypervisorFixture.ts';
import { EventRecording, freshState, liveChain, magic, until } from './hypervisorFixture.ts';

const volumes = [{ target: 'vda' }, { target: 'vdb' }];
const slowBytesPerSecond = 1024 * 1024;

/** What a live snapshot and the active commit that takes it back promise. */
export function liveSnapshots(t: Test, fixture: HypervisorFixture): void {
  const { hypervisor } = fixture;

  void t.test('a live snapshot puts every named volume on its overlay at one instant', async (t) => {
    const { machine, overlay } = await prepared(fixture);
    const { uuid } = machine;
    const memoryFile = freshState(fixture);
    await using recording = await EventRecording.start(hypervisor);
    await hypervisor.snapshotLive(uuid, { memoryFile, overlays: [overlay] });
    t.match(await hypervisor.status(uuid), { state: 'running' });
    await recording.until((event) => event.kind === 'lifecycle' && event.event === 'resumed');
    t.same(recording.lifecycle(uuid), ['suspended', 'resumed'], 'the events tell the pause');
    t.same(await liveChain(hypervisor, uuid, 'vda'), [overlay.overlay, machine.imagePath('vda')]);
    t.same(await liveChain(hypervisor, uuid, 'vdb'), [machine.imagePath('vdb')], 'the other one is left');
    const persistent = DomainXml.parse(await hypervisor.definition(uuid, 'persistent'));
    t.equal(persistent.volume('vda').path, overlay.overlay, 'the next start uses it too');
    t.same(await hypervisor.snapshotNames(uuid), [], 'no metadata is kept');
    t.equal(await magic(memoryFile), 'LibvirtQemudSave');
    t.equal((await stat(memoryFile)).mode & 0o777, 0o600, 'nobody else can read the memory');
    const stored = DomainXml.parse(await hypervisor.stateDefinition(memoryFile));
    t.equal(stored.volume('vda').path, machine.imagePath('vda'), 'memory goes on from the image');
    stored.removeBackingStores();
    await hypervisor.setStateDefinition(memoryFile, stored.toString());
    const corrected = DomainXml.parse(await hypervisor.stateDefinition(memoryFile));
    t.equal(corrected.volume('vda').backingChain, undefined, 'and need not say where the chain ends');
    await hypervisor.powerOff(uuid);
    await hypervisor.start(uuid);
    t.same(await liveChain(hypervisor, uuid, 'vda'), [overlay.overlay, machine.imagePath('vda')]);
    await hypervisor.powerOff(uuid);
  });

  void t.test('the memory of a live snapshot is restored onto the image that was frozen', async (t) => {
    const { machine, overlay } = await prepared(fixture);
    const { uuid } = machine;
    const file = freshState(fixture);
    await hypervisor.snapshotLive(uuid, { memoryFile: file, overlays: [overlay] });
    await hypervisor.powerOff(uuid);
    const definition = DomainXml.parse(await hypervisor.stateDefinition(file));
    definition.removeBackingStores();
    await hypervisor.restoreState({ file, definition: definition.toString(), paused: false });
    t.match(await hypervisor.status(uuid), { state: 'running' });
    t.same(await liveChain(hypervisor, uuid, 'vda'), [machine.imagePath('vda')]);
    await hypervisor.powerOff(uuid);
  });

  void t.test('a live snapshot that cannot be made leaves the machine as it was', async (t) => {
    const { machine, overlay } = await prepared(fixture);
    const { uuid } = machine;
    const memoryFile = freshState(fixture);
    const before = await hypervisor.definition(uuid, 'persistent');
    const signal = AbortSignal.abort();
    await t.rejects(hypervisor.snapshotLive(uuid, { memoryFile, overlays: [overlay], signal }), {
      code: 'OPERATION_ABORTED',
    });
    const missing = { target: 'vda', overlay: `${overlay.overlay}.missing` };
    await t.rejects(hypervisor.snapshotLive(uuid, { memoryFile, overlays: [missing] }), {
      name: 'HypervisorError',
    });
    await t.rejects(stat(memoryFile), { code: 'ENOENT' }, 'no memory file is left');
    await writeFile(memoryFile, 'somebody else wrote this');
    await t.rejects(hypervisor.snapshotLive(uuid, { memoryFile, overlays: [overlay] }), {
      code: 'OPERATION_FAILED',
    });
    t.match(await hypervisor.status(uuid), { state: 'running' });
    t.equal(await hypervisor.definition(uuid, 'persistent'), before);
    t.same(await liveChain(hypervisor, uuid, 'vda'), [machine.imagePath('vda')]);
    await hypervisor.powerOff(uuid);
    const off = { memoryFile: freshState(fixture), overlays: [overlay] };
    await t.rejects(hypervisor.snapshotLive(uuid, off), { name: 'HypervisorError' });
  });

  void t.test('an active commit stays until it is told to pivot, and the image is back then', async (t) => {
    const { machine, overlay } = await prepared(fixture);
    const { uuid } = machine;
    const before = await hypervisor.definition(uuid, 'persistent');
    await hypervisor.snapshotLive(uuid, { memoryFile: freshState(fixture), overlays: [overlay] });
    await using recording = await EventRecording.start(hypervisor);
    const commit = { target: 'vda', top: overlay.overlay, base: machine.imagePath('vda') };
    await hypervisor.commit(uuid, { ...commit, bandwidthBytesPerSecond: 0 });
    await recording.until((event) => event.kind === 'block-job' && event.status === 'ready');
    await until(async () => (await hypervisor.blockJob(uuid, 'vda'))?.ready === true);
    t.match(await hypervisor.blockJob(uuid, 'vda'), { kind: 'active-commit', ready: true });
    t.same(await liveChain(hypervisor, uuid, 'vda'), [overlay.overlay, machine.imagePath('vda')]);
    await hypervisor.suspend(uuid);
    await hypervisor.pivot(uuid, 'vda');
    t.equal(await hypervisor.blockJob(uuid, 'vda'), null);
    t.same(await liveChain(hypervisor, uuid, 'vda'), [machine.imagePath('vda')]);
    t.equal(await hypervisor.definition(uuid, 'persistent'), before, 'the definition is the one from before');
    await hypervisor.resume(uuid);
    t.equal((await readImageInfo(machine.imagePath('vda'), 'qcow2', { inUse: true })).backing, null);
    await t.rejects(hypervisor.pivot(uuid, 'vda'), { name: 'HypervisorError' }, 'a second time');
    await hypervisor.powerOff(uuid);
  });

  void t.test(
    'a commit that is not ready cannot be pivoted, and can be aborted and begun again',
    async (t) => {
      const { machine, overlay } = await prepared(fixture);
      const { uuid } = machine;
      await hypervisor.snapshotLive(uuid, { memoryFile: freshState(fixture), overlays: [overlay] });
      const commit = { target: 'vda', top: overlay.overlay, base: machine.imagePath('vda') };
      const wrong = { ...commit, top: machine.imagePath('vdb'), bandwidthBytesPerSecond: 0 };
      await t.rejects(hypervisor.commit(uuid, wrong), { name: 'HypervisorError' }, 'a foreign top');
      {
        using _held = fixture.holdBlockJobs?.();
        await hypervisor.commit(uuid, { ...commit, bandwidthBytesPerSecond: slowBytesPerSecond });
        const job = await hypervisor.blockJob(uuid, 'vda');
        if (job?.ready === false)
          await t.rejects(hypervisor.pivot(uuid, 'vda'), { name: 'HypervisorError' }, 'too early');
        await hypervisor.abortBlockJob(uuid, 'vda');
      }
      t.equal(await hypervisor.blockJob(uuid, 'vda'), null);
      t.same(await liveChain(hypervisor, uuid, 'vda'), [overlay.overlay, machine.imagePath('vda')]);
      await hypervisor.commit(uuid, { ...commit, bandwidthBytesPerSecond: 0 });
      await until(async () => (await hypervisor.blockJob(uuid, 'vda'))?.ready === true);
      await hypervisor.pivot(uuid, 'vda');
      t.same(await liveChain(hypervisor, uuid, 'vda'), [machine.imagePath('vda')]);
      await hypervisor.powerOff(uuid);
    },
  );
}

/** A running machine with an empty overlay over its first image. */
async function prepared(fixture: HypervisorFixture): Promise<{
  readonly machine: ConformanceMachine;
  readonly overlay: { readonly target: string; readonly overlay: string };
}> {
  const machine = await fixture.createMachine({ volumes, running: true });
  const image = machine.imagePath('vda');
  const overlay = `${image}.overlay`;
  const { virtualSizeBytes } = await readImageInfo(image, 'qcow2', { inUse: true });
  await createOverlay(overlay, { path: image, format: 'qcow2' }, virtualSizeBytes);
  await chmod(overlay, 0o666);
  return { machine, overlay: { target: 'vda', overlay } };
}
