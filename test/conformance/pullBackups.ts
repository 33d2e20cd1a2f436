import { chmod, chown, mkdir, mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';

import type { Test } from 'tap';

import type { PullBackup } from '../../agent/hypervisor/backupXml.ts';
import { exists } from '../../common/files.ts';
import { readFrom } from '../../nbd/fixture.ts';
import { NbdVolume } from '../../nbd/volume.ts';
import type { ConformanceMachine, HypervisorFixture } from './hypervisorFixture.ts';
import { until } from './hypervisorFixture.ts';

const volumes = [{ target: 'vda' }, { target: 'vdb' }];
const answerMs = 20_000;

/** What a pull-mode backup promises. */
export function pullBackups(t: Test, fixture: HypervisorFixture): void {
  const { hypervisor } = fixture;

  void t.test('a backup serves every named volume as it is, until it is ended', async (t) => {
    const machine = await fixture.createMachine({ volumes, running: true });
    const { uuid } = machine;
    const backup = await prepareBackup(fixture, machine, ['vda', 'vdb']);
    t.equal(await hypervisor.currentBackup(uuid), null);
    await hypervisor.beginBackup(uuid, backup);
    t.same(await hypervisor.currentBackup(uuid), backup);
    t.match(await hypervisor.job(uuid), { kind: /bounded/ });
    for (const { exportName } of backup.volumes) {
      await using volume = await NbdVolume.open({ socketPath: backup.socketPath, exportName, answerMs });
      t.ok(volume.virtualSizeBytes > 0);
      t.ok(
        (await volume.extents()).some(({ zero }) => !zero),
        `${exportName} has content`,
      );
    }
    await hypervisor.endBackup(uuid, join(fixture.stateDir, 'another'));
    t.not(await hypervisor.currentBackup(uuid), null, 'that of another socket is not ended');
    await hypervisor.endBackup(uuid, backup.socketPath);
    t.equal(await hypervisor.currentBackup(uuid), null);
    await until(async () => !(await exists(backup.volumes[0]?.scratchFile ?? '')));
    await hypervisor.endBackup(uuid, backup.socketPath);
    t.match(await hypervisor.status(uuid), { state: 'running' }, 'ending it again does nothing');
    await hypervisor.powerOff(uuid);
  });

  void t.test('only the named volumes are served', async (t) => {
    const machine = await fixture.createMachine({ volumes, running: true });
    const { uuid } = machine;
    const backup = await prepareBackup(fixture, machine, ['vdb']);
    await hypervisor.beginBackup(uuid, backup);
    const { socketPath } = backup;
    await t.rejects(NbdVolume.open({ socketPath, exportName: 'vda', answerMs }), {
      code: 'NBD_EXPORT_NOT_FOUND',
    });
    await hypervisor.endBackup(uuid, socketPath);
    await hypervisor.powerOff(uuid);
  });

  void t.test('a suspended machine can be backed up, and suspended and resumed meanwhile', async (t) => {
    const machine = await fixture.createMachine({ volumes, running: true });
    const { uuid } = machine;
    await hypervisor.suspend(uuid);
    const backup = await prepareBackup(fixture, machine, ['vda', 'vdb']);
    await hypervisor.beginBackup(uuid, backup);
    t.match(await hypervisor.status(uuid), { state: 'paused', reason: 'user' });
    await hypervisor.resume(uuid);
    await hypervisor.suspend(uuid);
    await hypervisor.resume(uuid);
    await hypervisor.endBackup(uuid, backup.socketPath);
    t.match(await hypervisor.status(uuid), { state: 'running' });
    await hypervisor.powerOff(uuid);
  });

  void t.test('power off ends a backup', async (t) => {
    const machine = await fixture.createMachine({ volumes, running: true });
    const { uuid } = machine;
    const backup = await prepareBackup(fixture, machine, ['vda', 'vdb']);
    await hypervisor.beginBackup(uuid, backup);
    await using volume = await NbdVolume.open({
      socketPath: backup.socketPath,
      exportName: 'vda',
      answerMs,
    });
    await hypervisor.powerOff(uuid);
    t.match(await hypervisor.status(uuid), { state: 'shut-off' });
    await until(async () => (await hypervisor.currentBackup(uuid)) === null);
    await t.rejects(readFrom(volume, 0, 4096), { name: 'NbdError' });
  });

  void t.test('a machine that is off has nothing to serve', async (t) => {
    const machine = await fixture.createMachine({ volumes, running: false });
    const backup = await prepareBackup(fixture, machine, ['vda'], false);
    await t.rejects(hypervisor.processUser(machine.uuid), { code: 'MACHINE_STATE_INVALID' });
    await t.rejects(hypervisor.beginBackup(machine.uuid, backup), { name: 'HypervisorError' });
  });

  const { restartHypervisor } = fixture.externally ?? {};
  if (restartHypervisor !== undefined) {
    void t.test('a backup outlives a restart of the hypervisor', async (t) => {
      const machine = await fixture.createMachine({ volumes, running: true });
      const { uuid } = machine;
      const backup = await prepareBackup(fixture, machine, ['vda', 'vdb']);
      await hypervisor.beginBackup(uuid, backup);
      await using volume = await NbdVolume.open({
        socketPath: backup.socketPath,
        exportName: 'vda',
        answerMs,
      });
      await restartHypervisor();
      t.same(await hypervisor.currentBackup(uuid), backup);
      t.equal((await readFrom(volume, 0, 4096)).length, 4096);
      await hypervisor.endBackup(uuid, backup.socketPath);
      t.equal(await hypervisor.currentBackup(uuid), null);
      t.match(await hypervisor.status(uuid), { state: 'running' });
      await hypervisor.powerOff(uuid);
    });
  }
}

/** A backup with a socket directory of QEMU's user and no scratch file yet. */
export async function prepareBackup(
  { hypervisor, stateDir }: HypervisorFixture,
  machine: Pick<ConformanceMachine, 'uuid'>,
  targets: readonly string[],
  running = true,
): Promise<PullBackup> {
  const directory = await mkdtemp(join(stateDir, 'nbd-'));
  await chmod(directory, 0o711);
  const scratch = join(directory, 'scratch');
  await mkdir(scratch, { mode: 0o711 });
  if (running) {
    const { uid, gid } = await hypervisor.processUser(machine.uuid);
    await chown(directory, uid, gid);
  }
  return {
    socketPath: join(directory, 's'),
    volumes: targets.map((target) => ({
      target,
      exportName: target,
      scratchFile: join(scratch, `${target}.scratch`),
    })),
  };
}
