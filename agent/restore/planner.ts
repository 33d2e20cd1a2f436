import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { readFile, realpath } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { exists, freeBytes, sameFileSystem } from '../../common/files.ts';
import { newId } from '../../common/ids.ts';
import { formatBytes } from '../../common/units.ts';
import { rememberedOwner } from '../../common/xattr.ts';
import type { Manifest } from '../../storage/manifest.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { spaceFactor } from '../snapshot/space.ts';
import { retainDirectoryName } from '../snapshot/workspace.ts';
import { findConflicts } from './conflicts.ts';
import { RestoreError } from './errors.ts';
import type { RestoredVolume, RestorePlan } from './plan.ts';
import { refuseTakenPaths, requireUnused } from './takenPaths.ts';

export interface RestoreRequest {
  /** The machine gets this name, and its own UUID, MACs, NVRAM and image paths. */
  readonly as?: string | undefined;
  /** Over the machine that was backed up. */
  readonly inPlace?: boolean | undefined;
  readonly start?: 'resume' | 'boot' | 'none' | undefined;
  /** Directory for the images; alone: only the files are restored there. */
  readonly to?: string | undefined;
}

/** Bytes that a definition has at most; it was ours when it was stored. */
const definitionBytesMax = 4 * 1024 * 1024;

/**
 * Plans a restore and finds everything that stands in its way. Changes nothing.
 * @throws RestoreError with what is in the way and what to type
 */
export async function planRestore(
  hypervisor: Hypervisor,
  entry: BackupEntry,
  request: RestoreRequest,
): Promise<RestorePlan> {
  const { manifest } = entry;
  if (manifest === null || entry.state !== 'Active') {
    throw new RestoreError(
      'BACKUP_DAMAGED',
      `${entry.directory} cannot be restored: ${entry.problem ?? 'it has no manifest'}`,
      {
        hint: `stillpoint verify --data ${entry.id ?? entry.directory}; stillpoint list ${entry.machine.name}`,
      },
    );
  }
  const machines = await hypervisor.machines();
  const present = machines.find((machine) => machine.uuid === manifest.machine.uuid);
  const kind = kindOf(request, present, manifest);
  const start = startOf(request, kind, manifest);
  const definition = await readDefinition(entry, manifest);
  const jobId = newId();
  const name = kind === 'new-machine' ? (request.as ?? '') : manifest.machine.name;
  const uuid = kind === 'in-place' ? manifest.machine.uuid : randomUUID();
  if (kind !== 'files') await refuseTakenName(machines, name, uuid);
  if (kind === 'in-place' && present !== undefined)
    await refuseUnsuitableMachine(hypervisor, present, manifest);

  const volumes = await Promise.all(
    manifest.volumes.map((volume) =>
      planVolume(entry, volume, { kind, name, jobId, to: request.to }, definition),
    ),
  );
  await refuseTakenPaths(hypervisor, machines, volumes, kind, uuid);
  await requireUnused(volumes, uuid);
  const first = volumes[0];
  if (first === undefined) throw new Error('a manifest without volumes');
  const memory =
    start === 'resume' || kind === 'files' ? planMemory(entry, manifest, first, kind, request.to) : null;
  const plan: RestorePlan = {
    jobId,
    backup: {
      id: manifest.id,
      storage: entry.storage,
      directory: entry.directory,
      pointInTime: manifest.pointInTime,
    },
    kind,
    start,
    machine: { name, uuid },
    runningAtPoint: manifest.memory?.running ?? true,
    volumes,
    memory,
    nvram: await planNvram(entry, manifest, { kind, name, jobId, to: request.to }),
    definition: {
      path: join(entry.directory, manifest.definition.file),
      sizeBytes: 0,
      sha256: manifest.definition.sha256,
    },
    macs: kind === 'new-machine' ? definition.interfaces.map(newMac) : [],
    linksDown:
      kind === 'new-machine' &&
      start === 'resume' &&
      present !== undefined &&
      definition.interfaces.length > 0,
    present:
      kind === 'in-place' && present !== undefined
        ? {
            running: present.status.state !== 'shut-off' && present.status.state !== 'crashed',
            autostart: present.autostart,
          }
        : null,
    autostart: kind === 'in-place' && (present?.autostart ?? manifest.definition.autostart),
    workDirectories: [],
    conflicts: [],
  };
  await requireSpace(plan);
  return {
    ...plan,
    workDirectories: [
      ...new Set([
        ...volumes.map((volume) => volume.workDirectory),
        ...(plan.nvram === null ? [] : [dirname(plan.nvram.staged)]),
      ]),
    ],
    conflicts: await findConflicts(hypervisor, machines, plan, definition),
  };
}

function kindOf(
  request: RestoreRequest,
  present: MachineSummary | undefined,
  manifest: Manifest,
): RestorePlan['kind'] {
  if (request.as !== undefined && request.inPlace) {
    throw new RestoreError('RESTORE_TARGET_UNCLEAR', 'a restore is either in place or a new machine', {
      hint: 'give --in-place or --as NAME',
    });
  }
  if (request.as !== undefined) return 'new-machine';
  if (request.inPlace) {
    if (request.to === undefined) return 'in-place';
    throw new RestoreError('RESTORE_TARGET_UNCLEAR', 'a restore in place puts the images where they were', {
      hint: 'leave --to out, or give --as NAME',
    });
  }
  if (request.to !== undefined) return 'files';
  if (present === undefined) return 'in-place';
  throw new RestoreError(
    'RESTORE_TARGET_UNCLEAR',
    `${manifest.machine.name} exists: should it be replaced?`,
    {
      hint: `--in-place puts ${manifest.machine.name} back to ${manifest.pointInTime}; --as NAME makes a second machine; --to DIR restores only the files`,
    },
  );
}

function startOf(
  request: RestoreRequest,
  kind: RestorePlan['kind'],
  manifest: Manifest,
): RestorePlan['start'] {
  if (kind === 'files') return 'none';
  const start = request.start ?? (manifest.memory === undefined ? 'boot' : 'resume');
  if (start === 'resume' && manifest.memory === undefined) {
    throw new RestoreError('NO_MEMORY_STATE', 'the backup holds no memory state', { hint: '--start boot' });
  }
  return start;
}

async function readDefinition(entry: BackupEntry, manifest: Manifest): Promise<DomainXml> {
  const path = join(entry.directory, manifest.definition.file);
  const data = await readFile(path);
  if (
    data.length > definitionBytesMax ||
    createHash('sha256').update(data).digest('hex') !== manifest.definition.sha256
  ) {
    throw new RestoreError('BACKUP_DAMAGED', `${path} is not what was stored: its digest differs`, {
      hint: `stillpoint verify ${manifest.id}`,
    });
  }
  return DomainXml.parse(data.toString('utf8'));
}

async function refuseTakenName(
  machines: readonly MachineSummary[],
  name: string,
  uuid: string,
): Promise<void> {
  if (!/^[^/\n\0]{1,200}$/.test(name)) {
    throw new RestoreError('NAME_INVALID', `"${name}" cannot be the name of a machine`, {
      hint: 'a name has no / and no line end, and at most 200 characters',
    });
  }
  const other = machines.find((machine) => machine.name === name && machine.uuid !== uuid);
  if (other === undefined) return;
  throw new RestoreError('NAME_TAKEN', `there is another machine ${name} (${other.uuid})`, {
    hint: 'choose another name with --as NAME, or rename that one: virsh domrename',
  });
}

async function refuseUnsuitableMachine(
  hypervisor: Hypervisor,
  present: MachineSummary,
  manifest: Manifest,
): Promise<void> {
  if (present.name !== manifest.machine.name) {
    throw new RestoreError(
      'NAME_TAKEN',
      `the machine is called ${present.name} now, and was called ${manifest.machine.name}`,
      {
        hint: `virsh domrename ${present.name} ${manifest.machine.name}, or restore with --as NAME`,
      },
    );
  }
  if (present.hasManagedSave) {
    throw new RestoreError(
      'MACHINE_HAS_MANAGED_SAVE',
      `${present.name} has a managed save image, which would resume on the wrong disks`,
      {
        hint: `virsh managedsave-remove ${present.name} throws it away`,
      },
    );
  }
  const names = [
    ...(await hypervisor.snapshotNames(present.uuid)),
    ...(await hypervisor.checkpointNames(present.uuid)),
  ];
  if (names.length === 0) return;
  throw new RestoreError(
    'MACHINE_HAS_SNAPSHOTS',
    `${present.name} has snapshots or checkpoints, which would not fit its disks any more: ${names.join(', ')}`,
    {
      hint: `virsh snapshot-list ${present.name}; delete them, or restore with --as NAME`,
    },
  );
}

interface Naming {
  readonly kind: RestorePlan['kind'];
  readonly name: string;
  readonly jobId: string;
  readonly to: string | undefined;
}

async function planVolume(
  entry: BackupEntry,
  volume: Manifest['volumes'][number],
  naming: Naming,
  definition: DomainXml,
): Promise<RestoredVolume> {
  const directory = naming.to ?? dirname(volume.source);
  const opened = definition.volumes.find(({ target }) => target === volume.target)?.format;
  const asRaw = naming.kind !== 'files' && volume.format === 'qcow2' && opened === 'raw';
  const image =
    naming.kind === 'in-place'
      ? volume.source
      : join(directory, `${naming.name}-${volume.target}.${asRaw ? 'raw' : volume.format}`);
  const existed = await exists(image);
  const file = existed ? await realpath(image) : image;
  const workDirectory = join(dirname(file), retainDirectoryName, naming.jobId);
  return {
    target: volume.target,
    format: volume.format,
    asRaw,
    artifact: {
      path: join(entry.directory, volume.file),
      sizeBytes: volume.storedBytes,
      sha256: volume.sha256,
    },
    image,
    file,
    workDirectory,
    staged: join(workDirectory, `${volume.target}.staged`),
    kept: join(workDirectory, `${volume.target}.kept`),
    existed,
    owner: volume.owner,
    presentOwner: existed ? await rememberedOwner(file) : null,
  };
}

function planMemory(
  entry: BackupEntry,
  manifest: Manifest,
  first: RestoredVolume,
  kind: RestorePlan['kind'],
  to: string | undefined,
): RestorePlan['memory'] {
  const { memory } = manifest;
  if (memory === undefined) return null;
  const staged =
    kind === 'files'
      ? join(to ?? '', `${manifest.machine.name}.state`)
      : join(first.workDirectory, 'memory.state');
  return {
    artifact: {
      path: join(entry.directory, memory.file),
      sizeBytes: memory.sizeBytes,
      sha256: memory.sha256,
    },
    staged,
  };
}

async function planNvram(
  entry: BackupEntry,
  manifest: Manifest,
  naming: Naming,
): Promise<RestorePlan['nvram']> {
  const nvram = manifest.extras.find((extra) => extra.kind === 'nvram');
  if (nvram === undefined) return null;
  const fileName = naming.kind === 'in-place' ? basename(nvram.source) : `${naming.name}_VARS.fd`;
  const directory = naming.kind === 'files' ? (naming.to ?? '') : dirname(nvram.source);
  const path = join(directory, fileName);
  const work = join(directory, retainDirectoryName, naming.jobId);
  return {
    artifact: { path: join(entry.directory, nvram.file), sizeBytes: nvram.sizeBytes, sha256: nvram.sha256 },
    path,
    staged: join(work, 'nvram.staged'),
    kept: join(work, 'nvram.kept'),
    existed: await exists(path),
  };
}

/** Checked copies are made beside their destinations before anything is replaced. */
async function requireSpace(plan: RestorePlan): Promise<void> {
  for (const first of plan.volumes) {
    let neededBytes = first === plan.volumes[0] ? (plan.memory?.artifact.sizeBytes ?? 0) : 0;
    for (const volume of plan.volumes) {
      // A raw image is made of the checked copy, beside it.
      const copies = volume.asRaw ? 2 : 1;
      if (await sameFileSystem(volume.image, first.image)) neededBytes += copies * volume.artifact.sizeBytes;
    }
    const free = await freeBytes(first.image);
    if (free >= neededBytes * spaceFactor) continue;
    throw new RestoreError(
      'NOT_ENOUGH_DISK_SPACE',
      `the file system of ${first.image} has ${formatBytes(free)} free; the restore needs ${formatBytes(neededBytes * spaceFactor)}, because what is there is kept until the machine has started`,
      { hint: `df -h ${dirname(first.image)}; or restore elsewhere with --as NAME --to DIR` },
    );
  }
}

function newMac(): string {
  // 52:54:00 is the prefix that QEMU and libvirt use for machines of their own.
  return `52:54:00:${[...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`;
}
