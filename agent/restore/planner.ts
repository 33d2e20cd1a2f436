import { randomBytes, randomUUID } from 'node:crypto';
import { dirname, join } from 'node:path';
import { freeBytes, sameFileSystem } from '../../common/files.ts';
import { newId } from '../../common/ids.ts';
import { formatBytes } from '../../common/units.ts';
import type { Manifest } from '../../storage/manifest.ts';
import { isTemplate } from '../../storage/template.ts';
import { filesByPath } from '../../storage/directory/filesByPath.ts';
import type { BackupEntry, StoredFiles } from '../../storage/storage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { foreignCheckpointNames } from '../hypervisor/ourCheckpoints.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { spaceFactor } from '../snapshot/space.ts';
import { findConflicts } from './conflicts.ts';
import { RestoreError } from './errors.ts';
import { requireInstant } from './instantPlan.ts';
import { planNetworks } from './networks.ts';
import type { RestoredVolume, RestorePlan } from './plan.ts';
import { planExtras } from './planExtras.ts';
import { type Naming, planMemory, planNvram, planVolume, safetyCopyOf } from './planFiles.ts';
import { isOff, kindOf, refuseIdleNetworks, type RestoreRequest, startOf, volumesOf } from './request.ts';
import { refuseTakenPaths, requireUnused } from './takenPaths.ts';

/** What a plan must know of the host and of the storage that it restores from. */
export interface RestoreSite {
  readonly stored: StoredFiles;
  /** File of the configuration, for what serves a backup that is not kept as files; `null` where it is. */
  readonly config: string | null;
  /** Where the sockets of an instant restore are made. */
  readonly runDirectory: string;
}

const siteOfFiles: RestoreSite = { stored: filesByPath, config: null, runDirectory: '/run/stillpoint' };

/**
 * Plans a restore and finds everything that stands in its way. Changes nothing.
 * @param site how this host is set up, and how the artifacts of the backup's storage are read
 * @throws RestoreError with what is in the way and what to type
 */
export async function planRestore(
  hypervisor: Hypervisor,
  entry: BackupEntry,
  request: RestoreRequest,
  { stored, config, runDirectory }: RestoreSite = siteOfFiles,
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
  const template = isTemplate(manifest);
  // Of a template there is nothing but its image.
  const scope = request.volumes === undefined && !template ? 'machine' : 'volumes';
  const isWhole = kind !== 'files' && scope === 'machine';
  refuseIdleNetworks(request, isWhole);
  const chosen = volumesOf(request, manifest);
  const start = startOf(request, kind, manifest, present);
  const definitionThen = DomainXml.parse(
    await stored.readText({
      path: join(entry.directory, manifest.definition.file),
      sha256: manifest.definition.sha256,
    }),
  );
  const jobId = newId();
  const name = kind === 'new-machine' ? (request.as ?? '') : manifest.machine.name;
  const uuid = kind === 'in-place' ? manifest.machine.uuid : randomUUID();
  if (kind !== 'files') await refuseTakenName(machines, name, uuid);
  const replaced = kind === 'in-place' ? present : undefined;
  if (replaced !== undefined) await refuseUnsuitableMachine(hypervisor, replaced, manifest);
  const definition =
    replaced !== undefined && scope === 'volumes'
      ? DomainXml.parse(await hypervisor.definition(replaced.uuid, 'persistent'))
      : definitionThen;

  const { to, map = {}, safetyCopy = true } = request;
  const instant = request.instant ?? false;
  if (instant) await requireInstant(entry, manifest, { kind, scope, start }, config === null);
  const serving = instant ? { sockets: join(runDirectory, jobId), config, storage: entry.storage } : null;
  const naming: Naming = { kind, scope, template, name, jobId, to, map, safetyCopy, serving };
  const volumes = await Promise.all(chosen.map((volume) => planVolume(entry, volume, naming, definition)));
  refuseOnePlaceTwice(volumes);
  await refuseTakenPaths(hypervisor, machines, volumes, kind, uuid);
  await requireUnused(volumes, uuid);
  const first = volumes[0];
  if (first === undefined) throw new Error('a manifest without volumes');
  const others = await planExtras(stored, entry, manifest, naming, uuid);
  const wantsMemory = scope === 'machine' && (start === 'resume' || kind === 'files');
  const { interfaces } = definition;
  const { networks, missing } = isWhole
    ? await planNetworks(hypervisor, definitionThen, request.networks ?? {}, start !== 'none')
    : { networks: [], missing: [] };
  const plan: RestorePlan = {
    jobId,
    backup: {
      id: manifest.id,
      storage: entry.storage,
      directory: entry.directory,
      pointInTime: manifest.pointInTime,
    },
    kind,
    scope,
    start,
    instant,
    machine: { name, uuid },
    runningAtPoint: manifest.memory?.running ?? true,
    volumes,
    memory: wantsMemory ? planMemory(entry, manifest, first, naming, networks.length > 0) : null,
    nvram: await planNvram(entry, manifest, naming),
    extras: others.extras,
    definition: {
      path: join(entry.directory, manifest.definition.file),
      sizeBytes: 0,
      sha256: manifest.definition.sha256,
    },
    definitionSafetyCopy:
      replaced !== undefined && safetyCopy && scope === 'machine'
        ? safetyCopyOf(join(dirname(first.file), `${name}.xml`))
        : null,
    macs: kind === 'new-machine' ? interfaces.map(newMac) : [],
    networks,
    linksDown: kind === 'new-machine' && start === 'resume' && present !== undefined && interfaces.length > 0,
    present: replaced === undefined ? null : { running: !isOff(replaced), autostart: replaced.autostart },
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
        ...plan.extras.map(({ staged }) => dirname(staged)),
      ]),
    ],
    conflicts: [
      ...(await findConflicts(hypervisor, machines, plan, definition)),
      ...absentNetworks(missing),
      ...others.conflicts,
    ],
  };
}

function refuseOnePlaceTwice(volumes: readonly RestoredVolume[]): void {
  const twice = volumes.find(({ file }, index) => volumes.findIndex((other) => other.file === file) < index);
  if (twice === undefined) return;
  throw new RestoreError('RESTORE_TARGET_UNCLEAR', `two volumes would go to ${twice.image}`, {
    hint: `--map ${twice.target}=/another/path`,
  });
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
    // Ours go on with the volumes that are kept; the next backup finds that the others have lost them.
    ...(await foreignCheckpointNames(hypervisor, present.uuid)),
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

/** For a machine that is not started now. */
function absentNetworks(missing: readonly string[]): RestorePlan['conflicts'] {
  return missing.map((name) => ({
    kind: 'network',
    message: `this host has no network or bridge ${name}: the machine will not start without it (--network ${name}=NAME or ${name}=none)`,
  }));
}

function newMac(): string {
  // 52:54:00 is the prefix that QEMU and libvirt use for machines of their own.
  return `52:54:00:${[...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`;
}
