import { join } from 'node:path';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { planExtras } from './extras.ts';
import { planReadVolume, type SeenVolume } from './planReadVolume.ts';
import { isLeftOut } from './planVolume.ts';
import {
  planNvram,
  refuseBusyMachine,
  refuseTpm,
  refuseUnsuitableSet,
  refuseUnsuitableStatus,
} from './preflight.ts';
import { socketPathBytesMax, socketPathOf } from './pullBackup.ts';
import type { ReadPlan } from './readPlan.ts';
import { placeScratch } from './scratchPlace.ts';
import { requireScratchSpace } from './scratchSpace.ts';

export interface ReadRequest {
  readonly jobId: string;
  readonly machineUuid: string;
  readonly mode: 'disk' | 'offline';
  readonly modeReason: string;
  readonly retainDirectory: string | null;
  /** Where sockets are made. */
  readonly runDirectory: string;
}

/**
 * Looks at a machine and plans a backup that reads its volumes where they are: through QEMU while it runs (`disk`),
 * or from the images while it is off (`offline`). Changes nothing.
 * @throws SnapshotError with what is unsuitable and what to do about it
 */
export async function planRead(hypervisor: Hypervisor, request: ReadRequest): Promise<ReadPlan> {
  const machine = await hypervisor.machine(request.machineUuid);
  const { uuid, name } = machine;
  const warnings: string[] = [];
  if (request.mode === 'disk') {
    refuseOff(machine);
    refuseUnsuitableStatus(name, machine.status);
    await refuseBusyMachine(hypervisor, uuid, name);
  } else {
    refuseRunning(machine);
    if (machine.hasManagedSave)
      warnings.push('its managed save image is not part of the backup, and stays valid');
  }
  const kind = request.mode === 'disk' ? 'live' : 'persistent';
  const definition = DomainXml.parse(await hypervisor.definition(uuid, kind));
  refuseTpm(definition);
  const seen: SeenVolume[] = [];
  for (const volume of definition.volumes) {
    if (isLeftOut(volume))
      warnings.push(
        `${volume.target} (${volume.readOnly ? 'read-only ' : ''}${volume.device}) is not part of the backup`,
      );
    else seen.push(await planReadVolume(hypervisor, machine, volume, request));
  }
  refuseUnsuitableSet(name, seen);
  const { volumes, workDirectories } = await placeScratch(name, seen, request);
  const [first = ''] = workDirectories;
  const others = await planExtras(definition, first, await hypervisor.snapshotNames(uuid));
  warnings.push(...others.warnings);
  const host = await hypervisor.hostInfo();
  const plan: ReadPlan = {
    machine: { uuid, name },
    host: { name: host.hostName, libvirt: host.libvirtVersion, qemu: host.qemuVersion },
    mode: request.mode,
    modeReason: request.modeReason,
    // Under a managed save image the guest is not shut down: what it had not written yet is in its memory.
    consistency: request.mode === 'offline' && !machine.hasManagedSave ? 'offline' : 'crash',
    checkpoint: null,
    socketDirectory: request.mode === 'disk' ? join(request.runDirectory, request.jobId) : null,
    nvram: await planNvram(definition, first),
    extras: [...others.extras],
    volumes,
    workDirectories,
    warnings,
  };
  if (plan.mode === 'offline') return plan;
  refuseLongSocketPath(plan);
  const scarce = await requireScratchSpace({
    machine: plan.machine,
    extrasBytes: others.sizeBytes,
    // What is not a file has its scratch file elsewhere.
    volumes: volumes.map((volume) => ({
      file: volume.kind === 'file' ? volume.file : (volume.scratch ?? volume.file),
      allocatedBytes: volume.allocatedBytes,
    })),
  });
  return { ...plan, warnings: [...warnings, ...scarce] };
}

function refuseOff({ name, status }: MachineSummary): void {
  if (status.state !== 'shut-off' && status.state !== 'crashed') return;
  throw new SnapshotError('MACHINE_OFF', `${name} is off; mode "disk" reads through a running QEMU`, {
    hint: 'mode "offline" can, and "auto" chooses it: --mode auto',
  });
}

function refuseRunning({ name, status }: MachineSummary): void {
  if (status.state === 'shut-off' || status.state === 'crashed') return;
  throw new SnapshotError(
    'MACHINE_RUNNING',
    `${name} is ${status.state}; mode "offline" reads images that nobody writes to`,
    { hint: '--mode auto chooses what fits; or shut it down first' },
  );
}

function refuseLongSocketPath(plan: ReadPlan): void {
  const path = socketPathOf(plan);
  if (Buffer.byteLength(path) <= socketPathBytesMax) return;
  throw new SnapshotError('CANNOT_BEGIN_BACKUP', `${path} is too long for a socket`, {
    hint: 'choose a shorter directory for agent.socket in the configuration',
  });
}
