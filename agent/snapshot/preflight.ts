import { access, constants } from 'node:fs/promises';
import { join } from 'node:path';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { foreignCheckpointNames } from '../hypervisor/ourCheckpoints.ts';
import type { Hypervisor, MachineStatus, MachineSummary } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { planExtras } from './extras.ts';
import type { PlannedVolume, SavePlan } from './plan.ts';
import { isLeftOut, planVolume } from './planVolume.ts';
import { placeState } from './space.ts';

export interface PreflightRequest {
  readonly jobId: string;
  readonly machineUuid: string;
  readonly modeReason: string;
  readonly retainDirectory: string | null;
  readonly ramDisk: string | null;
  /** What other jobs are still going to write to the RAM disk. */
  readonly ramDiskReservedBytes: number;
}

/**
 * Looks at a machine and everything that a `save` backup of it needs, and plans it. Changes nothing.
 * @param request.checkpoint name of the one that marks T1; `null`: none is wanted
 * @throws SnapshotError with what is unsuitable and what to do about it
 */
export async function planSave(
  hypervisor: Hypervisor,
  request: PreflightRequest & { readonly checkpoint: string | null },
): Promise<SavePlan> {
  const machine = await hypervisor.machine(request.machineUuid);
  refuseUnsuitableState(machine, 'save');
  const definition = DomainXml.parse(await hypervisor.definition(machine.uuid, 'live'));
  refuseUnsupportedDevices(definition);
  await refuseForeignState(hypervisor, machine.uuid, machine.name);

  const warnings: string[] = [];
  const volumes: PlannedVolume[] = [];
  for (const volume of definition.volumes) {
    if (isLeftOut(volume)) {
      warnings.push(
        `${volume.target} (${volume.readOnly ? 'read-only ' : ''}${volume.device}) is not part of the backup`,
      );
      continue;
    }
    await refuseBlockJob(hypervisor, machine, volume.target);
    volumes.push(await planVolume(machine, volume, request));
  }
  refuseUnsuitableSet(machine.name, volumes);
  const host = await hypervisor.hostInfo();
  refuseSubclusters(machine.name, volumes, host.qemuVersion);

  const memoryBytes = definition.memoryBytes;
  const first = volumes[0];
  if (first === undefined) throw new Error('no volumes');
  const others = await planExtras(definition, first.workDirectory);
  const about = { name: machine.name, memoryBytes };
  const state = await placeState(about, volumes, request, others.sizeBytes);
  warnings.push(...state.warnings);
  warnings.push(...others.warnings);
  return {
    machine: { uuid: machine.uuid, name: machine.name },
    host: { name: host.hostName, libvirt: host.libvirtVersion, qemu: host.qemuVersion },
    mode: 'save',
    modeReason: request.modeReason,
    memoryBytes,
    stateFile: state.file,
    stateOnRamDisk: state.onRamDisk,
    stowedStateFile: state.stowedFile,
    nvram: await planNvram(definition, first.workDirectory),
    extras: [...others.extras],
    checkpoint: volumes.some(({ keepsBitmaps }) => keepsBitmaps) ? request.checkpoint : null,
    volumes,
    workDirectories: [
      ...new Set(volumes.map((volume) => volume.workDirectory)),
      ...(state.onRamDisk && request.ramDisk !== null ? [join(request.ramDisk, request.jobId)] : []),
    ],
    warnings,
  };
}

/** @throws SnapshotError MACHINE_TRANSIENT, MACHINE_OFF, MACHINE_STATE_UNSUITABLE */
export function refuseUnsuitableState(machine: MachineSummary, mode: 'save' | 'live'): void {
  const { name, status } = machine;
  if (!machine.persistent) {
    throw new SnapshotError('MACHINE_TRANSIENT', `${name} is transient: libvirt forgets it when it stops`, {
      hint: `define it: virsh dumpxml --migratable --security-info ${name} > ${name}.xml && virsh define ${name}.xml`,
    });
  }
  if (status.state === 'shut-off') {
    throw new SnapshotError('MACHINE_OFF', `${name} is off; mode "${mode}" needs a running machine`, {
      hint: 'mode "offline" can, and "auto" chooses it: --mode auto',
    });
  }
  refuseUnsuitableStatus(name, status);
}

/**
 * A machine that stands still for another reason than its owner's wish is in the middle of something.
 * @throws SnapshotError MACHINE_STATE_UNSUITABLE
 */
export function refuseUnsuitableStatus(name: string, status: MachineStatus): void {
  if (
    status.state === 'running' ||
    status.state === 'blocked' ||
    (status.state === 'paused' && status.reason === 'user')
  ) {
    return;
  }
  throw new SnapshotError('MACHINE_STATE_UNSUITABLE', `${name} is ${status.state} (${status.reason})`, {
    hint: `virsh domstate --reason ${name}; bring it to running, or suspended by its owner, first`,
    retryable: true,
  });
}

/** @throws SnapshotError HOST_DEVICE_UNSUPPORTED, TPM_UNSUPPORTED */
export function refuseUnsupportedDevices(definition: DomainXml): void {
  const device = definition.hostDevices[0];
  if (device !== undefined) {
    throw new SnapshotError(
      'HOST_DEVICE_UNSUPPORTED',
      `${definition.name} has ${device.description}: QEMU cannot save a machine with it`,
      { hint: 'mode "disk" can: --mode disk; or take it away while the backup runs (virsh detach-device)' },
    );
  }
  refuseTpm(definition);
}

/** @throws SnapshotError TPM_UNSUPPORTED */
export function refuseTpm(definition: DomainXml): void {
  const { tpm } = definition;
  if (tpm === undefined || tpm.backend === 'emulator') return;
  throw new SnapshotError(
    'TPM_UNSUPPORTED',
    `${definition.name} has a TPM of the kind "${tpm.backend}", whose state is not where it can be kept`,
    {
      hint: "only a TPM that libvirt emulates (<backend type='emulator'>) can be kept; or exclude the machine",
    },
  );
}

/** Things of others that the swap of images would break. */
async function refuseForeignState(hypervisor: Hypervisor, uuid: string, name: string): Promise<void> {
  await refuseSnapshots(hypervisor, uuid, name);
  const checkpoints = await foreignCheckpointNames(hypervisor, uuid);
  if (checkpoints.length > 0) {
    throw new SnapshotError(
      'CHECKPOINTS_PRESENT',
      `${name} has ${checkpoints.length} libvirt checkpoint(s) of others: ${checkpoints.join(', ')}`,
      {
        hint: `their bitmaps would be lost in this mode; delete them: virsh checkpoint-delete ${name} ${checkpoints[0]}`,
      },
    );
  }
  await refuseBusyMachine(hypervisor, uuid, name);
}

/** @throws SnapshotError INTERNAL_SNAPSHOTS */
export async function refuseSnapshots(hypervisor: Hypervisor, uuid: string, name: string): Promise<void> {
  const snapshots = await hypervisor.snapshotNames(uuid);
  if (snapshots.length === 0) return;
  throw new SnapshotError(
    'INTERNAL_SNAPSHOTS',
    `${name} has ${snapshots.length} libvirt snapshot(s): ${snapshots.join(', ')}`,
    {
      hint: `they do not follow into the machine's new image; delete them: virsh snapshot-delete ${name} ${snapshots[0]}`,
    },
  );
}

/** @throws SnapshotError VOLUME_BUSY */
export async function refuseBlockJob(
  hypervisor: Hypervisor,
  machine: { readonly uuid: string; readonly name: string },
  target: string,
): Promise<void> {
  if ((await hypervisor.blockJob(machine.uuid, target)) === null) return;
  throw new SnapshotError('VOLUME_BUSY', `a block job works on ${target} of ${machine.name}`, {
    hint: `virsh blockjob ${machine.name} ${target} --info; wait for it to end, or abort it`,
    retryable: true,
  });
}

/** @throws SnapshotError MACHINE_STATE_UNSUITABLE while libvirt saves, migrates or backs it up */
export async function refuseBusyMachine(hypervisor: Hypervisor, uuid: string, name: string): Promise<void> {
  const job = await hypervisor.job(uuid);
  if (job.kind === 'none') return;
  throw new SnapshotError('MACHINE_STATE_UNSUITABLE', `libvirt is busy with a job of ${name}`, {
    hint: `virsh domjobinfo ${name}`,
    retryable: true,
  });
}

/** @throws SnapshotError NO_VOLUMES, XML_INCONSISTENCY */
export function refuseUnsuitableSet(name: string, volumes: readonly { readonly file: string }[]): void {
  if (volumes.length === 0) {
    throw new SnapshotError('NO_VOLUMES', `${name} has no volume that can be backed up`, {
      hint: `virsh domblklist ${name} --details`,
    });
  }
  const files = volumes.map((volume) => volume.file);
  if (new Set(files).size !== files.length) {
    throw new SnapshotError('XML_INCONSISTENCY', `two volumes of ${name} are the same file`, {
      hint: `virsh domblklist ${name}`,
    });
  }
}

/**
 * The image after a merge has the layout of the one before it. With `extended_l2` QEMU before 8.1 aborts in the
 * merge, because its copy-on-read rounds to whole clusters where subclusters are allocated (docs/BEHAVIOUR.md).
 */
function refuseSubclusters(name: string, volumes: readonly PlannedVolume[], qemuVersion: string): void {
  const [major = 0, minor = 0] = qemuVersion.split('.').map(Number);
  if (major > 8 || (major === 8 && minor >= 1)) return;
  const volume = volumes.find(({ layout }) => layout.includes('extended_l2=on'));
  if (volume === undefined) return;
  throw new SnapshotError(
    'VOLUME_UNSUPPORTED',
    `${volume.target} of ${name} has subclusters (extended_l2), and QEMU ${qemuVersion} aborts when it merges such an image`,
    {
      hint: `QEMU 8.1 can; or, with the machine off, write the image anew without them: qemu-img convert -O qcow2 ${volume.file} NEW`,
    },
  );
}

/** Where the UEFI variables are, and where their copy goes. @throws SnapshotError MISSING_NECESSARY_FILES */
export async function planNvram(definition: DomainXml, workDirectory: string): Promise<SavePlan['nvram']> {
  const source = definition.nvram;
  if (source === undefined) return null;
  try {
    await access(source, constants.R_OK);
  } catch (error) {
    throw new SnapshotError('MISSING_NECESSARY_FILES', `the NVRAM file ${source} cannot be read`, {
      hint: `virsh dumpxml ${definition.name} | grep nvram`,
      cause: error,
    });
  }
  return { source, file: join(workDirectory, 'nvram') };
}
