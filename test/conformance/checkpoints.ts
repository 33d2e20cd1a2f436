import type { Test } from 'tap';

import { dirtyContextOf, type PullBackup } from '../../agent/hypervisor/backupXml.ts';
import { exists } from '../../common/files.ts';
import { NbdVolume } from '../../nbd/volume.ts';
import type { ConformanceMachine, HypervisorFixture } from './hypervisorFixture.ts';
import { until } from './hypervisorFixture.ts';
import { prepareBackup } from './pullBackups.ts';

const volumes = [{ target: 'vda' }, { target: 'vdb' }];
const answerMs = 20_000;

/** What checkpoints promise. */
export function checkpoints(t: Test, fixture: HypervisorFixture): void {
  const { hypervisor } = fixture;

  /** A machine of two volumes, a backup of which has left checkpoint `one`. */
  const machineWithCheckpoint = async (): Promise<ConformanceMachine> => {
    const machine = await fixture.createMachine({ volumes, running: true });
    await backUp(fixture, machine, {}, 'one');
    return machine;
  };

  void t.test('a checkpoint is made with a backup, listed in its order, and deleted', async (t) => {
    const machine = await fixture.createMachine({ volumes, running: true });
    const { uuid } = machine;
    t.same(await hypervisor.checkpoints(uuid), []);
    for (const name of ['b-first', 'a-second', 'c-third']) await backUp(fixture, machine, {}, name);
    const targets = ['vda', 'vdb'];
    t.same(
      await hypervisor.checkpoints(uuid),
      ['b-first', 'a-second', 'c-third'].map((name) => ({ name, targets })),
    );
    await hypervisor.deleteCheckpoint(uuid, 'a-second', 'all');
    await hypervisor.deleteCheckpoint(uuid, 'a-second', 'all');
    t.same(await hypervisor.checkpointNames(uuid), ['b-first', 'c-third'], 'deleting it again does nothing');
    await backUp(fixture, machine, { vda: 'b-first', vdb: 'c-third' });
    await hypervisor.powerOff(uuid);
  });

  void t.test(
    'a volume tells what has changed since a checkpoint, and another is whole beside it',
    async (t) => {
      const machine = await machineWithCheckpoint();
      const backup = since(await prepareBackup(fixture, machine, ['vda', 'vdb']), { vda: 'one' });
      await hypervisor.beginBackup(machine.uuid, backup, { name: 'two', targets: ['vdb'] });
      t.same(await hypervisor.currentBackup(machine.uuid), backup);
      const { socketPath } = backup;
      const context = dirtyContextOf('vda');
      {
        await using volume = await NbdVolume.open({
          socketPath,
          exportName: 'vda',
          answerMs,
          dirtyContexts: [context],
        });
        const extents = await volume.dirtyExtents(context);
        t.equal(
          extents.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0),
          volume.virtualSizeBytes,
        );
        const dirtyBytes = extents.reduce(
          (sum, { dirty, lengthBytes }) => sum + (dirty ? lengthBytes : 0),
          0,
        );
        t.ok(dirtyBytes < volume.virtualSizeBytes / 2, `${dirtyBytes} bytes have changed`);
      }
      await t.rejects(
        NbdVolume.open({ socketPath, exportName: 'vdb', answerMs, dirtyContexts: [dirtyContextOf('vdb')] }),
        { code: 'NBD_CONTEXT_MISSING' },
      );
      await hypervisor.endBackup(machine.uuid, socketPath);
      t.match(await hypervisor.checkpoints(machine.uuid), [
        { name: 'one' },
        { name: 'two', targets: ['vdb'] },
      ]);
      await hypervisor.powerOff(machine.uuid);
    },
  );

  void t.test(
    'a checkpoint is made by itself, of the volumes that are named, while a machine runs',
    async (t) => {
      const machine = await machineWithCheckpoint();
      const { uuid } = machine;
      await hypervisor.createCheckpoint(uuid, { name: 'two', targets: ['vdb'] });
      t.match(await hypervisor.checkpoints(uuid), [{ name: 'one' }, { name: 'two', targets: ['vdb'] }]);
      await t.rejects(hypervisor.createCheckpoint(uuid, { name: 'two', targets: ['vdb'] }), {
        code: 'OPERATION_FAILED',
      });
      await backUp(fixture, machine, { vda: 'one', vdb: 'two' });
      await hypervisor.powerOff(uuid);
      await t.rejects(hypervisor.createCheckpoint(uuid, { name: 'three', targets: ['vdb'] }), {
        code: 'OPERATION_UNSUPPORTED',
      });
    },
  );

  void t.test('a backup that does not begin leaves neither checkpoint nor scratch file', async (t) => {
    const machine = await machineWithCheckpoint();
    const backup = since(await prepareBackup(fixture, machine, ['vda', 'vdb']), { vdb: 'never' });
    await t.rejects(hypervisor.beginBackup(machine.uuid, backup, { name: 'two', targets: ['vda'] }), {
      code: 'CHECKPOINT_UNUSABLE',
    });
    t.same(await hypervisor.checkpointNames(machine.uuid), ['one']);
    for (const { scratchFile } of backup.volumes) t.notOk(await exists(scratchFile));
    t.equal(await hypervisor.currentBackup(machine.uuid), null);
    await hypervisor.powerOff(machine.uuid);
  });

  void t.test(
    'checkpoints outlive power off, and then only what libvirt knows of them can be deleted',
    async (t) => {
      const machine = await machineWithCheckpoint();
      const { uuid } = machine;
      await hypervisor.powerOff(uuid);
      await hypervisor.start(uuid);
      await backUp(fixture, machine, { vda: 'one', vdb: 'one' });
      await hypervisor.powerOff(uuid);
      await t.rejects(hypervisor.deleteCheckpoint(uuid, 'one', 'all'), { code: 'OPERATION_UNSUPPORTED' });
      t.same(await hypervisor.checkpointNames(uuid), ['one']);
      await hypervisor.deleteCheckpoint(uuid, 'one', 'metadata');
      t.same(await hypervisor.checkpointNames(uuid), []);
    },
  );

  const { killQemu } = fixture.externally ?? {};
  if (killQemu !== undefined) {
    void t.test('a checkpoint whose QEMU was killed is listed, but cannot be used', async (t) => {
      const machine = await machineWithCheckpoint();
      const { uuid } = machine;
      await killQemu(machine.name);
      await until(async () => (await hypervisor.status(uuid)).state === 'shut-off');
      await hypervisor.start(uuid);
      t.same(await hypervisor.checkpointNames(uuid), ['one']);
      await t.rejects(backUp(fixture, machine, { vda: 'one' }), { code: 'CHECKPOINT_UNUSABLE' });
      await t.rejects(hypervisor.deleteCheckpoint(uuid, 'one', 'all'), { code: 'OPERATION_FAILED' });
      await hypervisor.deleteCheckpoint(uuid, 'one', 'metadata');
      t.same(await hypervisor.checkpointNames(uuid), []);
      await backUp(fixture, machine, {}, 'two');
      await hypervisor.powerOff(uuid);
    });
  }
}

/** Begins a backup of both volumes and ends it. */
async function backUp(
  fixture: HypervisorFixture,
  machine: ConformanceMachine,
  parents: Readonly<Record<string, string>>,
  checkpoint?: string,
): Promise<void> {
  const targets = volumes.map(({ target }) => target);
  const backup = since(await prepareBackup(fixture, machine, targets), parents);
  const mark = checkpoint === undefined ? undefined : { name: checkpoint, targets };
  await fixture.hypervisor.beginBackup(machine.uuid, backup, mark);
  await fixture.hypervisor.endBackup(machine.uuid, backup.socketPath);
}

function since(backup: PullBackup, parents: Readonly<Record<string, string>>): PullBackup {
  return {
    ...backup,
    volumes: backup.volumes.map((volume) => {
      const parent = parents[volume.target];
      return parent === undefined ? volume : { ...volume, since: parent };
    }),
  };
}
