import { access, constants, lstat, readFile, realpath, stat, statfs } from 'node:fs/promises';
import { dirname, isAbsolute, join } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { exists, freeBytes, sameFileSystem } from '../../common/files.ts';
import { type ImageInfo, readImageInfo } from '../../common/qemuImage.ts';
import { formatBytes } from '../../common/units.ts';
import { rememberedOwner } from '../../common/xattr.ts';
import { DomainXml, type DomainVolume } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { foreignWriters } from './imageUsers.ts';
import type { PlannedVolume, SavePlan } from './plan.ts';
import { retainDirectoryFor, workDirectoryFor } from './workspace.ts';

/** Head-room on everything that must fit somewhere (SC-02, SC-12). */
export const spaceFactor = 1.05;

/** Share of the host's memory that a RAM disk never takes. */
const memoryReserveShare = 0.05;

export interface PreflightRequest {
  readonly jobId: string;
  readonly machineUuid: string;
  readonly modeReason: string;
  readonly retainDirectory: string | null;
  readonly ramDisk: string | null;
}

/**
 * Looks at a machine and everything that a `save` backup of it needs, and plans it. Changes nothing.
 * @throws SnapshotError with what is unsuitable and what to do about it
 */
export async function planSave(hypervisor: Hypervisor, request: PreflightRequest): Promise<SavePlan> {
  const machine = await hypervisor.machine(request.machineUuid);
  refuseUnsuitableState(machine);
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
    if ((await hypervisor.blockJob(machine.uuid, volume.target)) !== null) {
      throw new SnapshotError('VOLUME_BUSY', `a block job works on ${volume.target} of ${machine.name}`, {
        hint: `virsh blockjob ${machine.name} ${volume.target} --info; wait for it to end, or abort it`,
        retryable: true,
      });
    }
    volumes.push(await planVolume(machine, volume, request));
  }
  refuseUnsuitableSet(machine.name, volumes);

  const memoryBytes = definition.memoryBytes;
  const state = await placeState(memoryBytes, volumes, request, machine.name);
  warnings.push(...state.warnings);
  await requireSpace(volumes, state.onRamDisk ? 0 : memoryBytes);
  const first = volumes[0];
  if (first === undefined) throw new Error('no volumes');
  const host = await hypervisor.hostInfo();
  return {
    machine: { uuid: machine.uuid, name: machine.name },
    host: { name: host.hostName, libvirt: host.libvirtVersion, qemu: host.qemuVersion },
    mode: 'save',
    modeReason: request.modeReason,
    memoryBytes,
    stateFile: state.file,
    stateOnRamDisk: state.onRamDisk,
    nvram: await planNvram(definition, first.workDirectory),
    volumes,
    workDirectories: [
      ...new Set(volumes.map((volume) => volume.workDirectory)),
      ...(state.onRamDisk && request.ramDisk !== null ? [join(request.ramDisk, request.jobId)] : []),
    ],
    warnings,
  };
}

function refuseUnsuitableState(machine: Awaited<ReturnType<Hypervisor['machine']>>): void {
  const { name, status } = machine;
  if (!machine.persistent) {
    throw new SnapshotError(
      'MACHINE_TRANSIENT',
      `${name} is transient: libvirt forgets it while it is saved`,
      {
        hint: `define it: virsh dumpxml --migratable --security-info ${name} > ${name}.xml && virsh define ${name}.xml`,
      },
    );
  }
  if (status.state === 'shut-off') {
    throw new SnapshotError('MACHINE_OFF', `${name} is off; mode "save" needs a running machine`, {
      hint: `virsh start ${name}`,
    });
  }
  if (
    status.state !== 'running' &&
    status.state !== 'blocked' &&
    !(status.state === 'paused' && status.reason === 'user')
  ) {
    throw new SnapshotError('MACHINE_STATE_UNSUITABLE', `${name} is ${status.state} (${status.reason})`, {
      hint: `virsh domstate --reason ${name}; bring it to running, or suspended by its owner, first`,
      retryable: true,
    });
  }
}

function refuseUnsupportedDevices(definition: DomainXml): void {
  const device = definition.hostDevices[0];
  if (device !== undefined) {
    throw new SnapshotError(
      'HOST_DEVICE_UNSUPPORTED',
      `${definition.name} has ${device.description}: QEMU cannot save a machine with it`,
      { hint: `take it away while the backup runs (virsh detach-device), or wait for mode "disk"` },
    );
  }
  if (definition.hasTpm) {
    throw new SnapshotError(
      'TPM_UNSUPPORTED',
      `${definition.name} has a TPM, whose state this version does not keep`,
      {
        hint: 'exclude the machine until a version that keeps TPM states',
      },
    );
  }
}

/** Things of others that the swap of images would break. */
async function refuseForeignState(hypervisor: Hypervisor, uuid: string, name: string): Promise<void> {
  const snapshots = await hypervisor.snapshotNames(uuid);
  if (snapshots.length > 0) {
    throw new SnapshotError(
      'INTERNAL_SNAPSHOTS',
      `${name} has ${snapshots.length} libvirt snapshot(s): ${snapshots.join(', ')}`,
      {
        hint: `they do not follow into the machine's new image; delete them: virsh snapshot-delete ${name} ${snapshots[0]}`,
      },
    );
  }
  const checkpoints = await hypervisor.checkpointNames(uuid);
  if (checkpoints.length > 0) {
    throw new SnapshotError(
      'CHECKPOINTS_PRESENT',
      `${name} has ${checkpoints.length} libvirt checkpoint(s): ${checkpoints.join(', ')}`,
      {
        hint: `their bitmaps would be lost in this mode; delete them: virsh checkpoint-delete ${name} ${checkpoints[0]}`,
      },
    );
  }
  const job = await hypervisor.job(uuid);
  if (job.kind !== 'none') {
    throw new SnapshotError('MACHINE_STATE_UNSUITABLE', `libvirt is busy with a job of ${name}`, {
      hint: `virsh domjobinfo ${name}`,
      retryable: true,
    });
  }
}

/** Removable and read-only media hold nothing of the machine's own; they stay where they are. */
function isLeftOut(volume: DomainVolume): boolean {
  return (
    volume.device === 'cdrom' || volume.device === 'floppy' || volume.readOnly || volume.sourceKind === 'none'
  );
}

async function planVolume(
  machine: { readonly uuid: string; readonly name: string },
  volume: DomainVolume,
  request: PreflightRequest,
): Promise<PlannedVolume> {
  const what = `${volume.target} of ${machine.name}`;
  refuseUnsupportedVolume(what, volume);
  const image = volume.path;
  if (image === undefined || !isAbsolute(image)) {
    throw new SnapshotError('XML_INCONSISTENCY', `${what} names no absolute path`, {
      hint: `virsh domblklist ${machine.name}`,
    });
  }
  const file = await resolveImage(what, image);
  const info = await readImageInfo(file, 'qcow2', { inUse: true });
  if (info.corrupt) {
    throw new SnapshotError('CORRUPT_DISK_IMAGE_FOUND', `${what}: ${file} is marked corrupt`, {
      hint: `with the machine off: qemu-img check ${file}`,
    });
  }
  if (info.internalSnapshots.length > 0) {
    throw new SnapshotError(
      'INTERNAL_SNAPSHOTS',
      `${what} holds internal snapshots: ${info.internalSnapshots.join(', ')}`,
      {
        hint: `with the machine off: qemu-img snapshot -d ${info.internalSnapshots[0]} ${file}`,
      },
    );
  }
  if (info.encrypted) throw volumeError('VOLUME_ENCRYPTED', what, 'is encrypted; its overlay would not be');
  if (info.dataFile !== undefined)
    throw volumeError('VOLUME_UNSUPPORTED', what, 'keeps its data in an external data file');
  const base = info.backing;
  if (base !== null && !isAbsolute(base.path)) {
    throw new SnapshotError(
      'RELATIVE_BACKING',
      `${what}: ${file} names its backing file relatively (${base.path})`,
      {
        hint: `with the machine off: qemu-img rebase -u -F ${base.format ?? 'qcow2'} -b ABSOLUTE-PATH ${file}`,
      },
    );
  }
  await refuseOtherUsers(what, file, machine.uuid);
  const workDirectory = workDirectoryFor(file, request.retainDirectory, request.jobId);
  await requireUsableRetainDirectory(what, file, request.retainDirectory);
  const below = await chainBelow(what, volume, base);
  return {
    target: volume.target,
    image,
    file,
    frozen: join(workDirectory, `${volume.target}.frozen`),
    overlay: join(workDirectory, `${volume.target}.overlay`),
    workDirectory,
    base: base === null ? null : { path: base.path, format: base.format ?? 'raw' },
    chain: [image, ...below],
    virtualSizeBytes: info.virtualSizeBytes,
    layout: [...info.layout],
    owner: await rememberedOwner(file),
    allocatedBytes: info.allocatedBytes,
  };
}

/**
 * The paths below the top image, as QEMU has them open. They must be letter by letter what the headers say: the
 * restored machine's chain is read from the headers, and compared with these.
 */
async function chainBelow(what: string, volume: DomainVolume, base: ImageInfo['backing']): Promise<string[]> {
  const below = (volume.backingChain ?? []).map((element) => {
    if (element.path === undefined)
      throw volumeError('VOLUME_UNSUPPORTED', what, 'stands on something that is not a file');
    return element.path;
  });
  let header = base;
  for (const path of [...below, undefined]) {
    if (header?.path !== path) {
      throw new SnapshotError(
        'XML_INCONSISTENCY',
        `${what}: an image's header names ${header?.path ?? 'no backing file'}, but the machine runs on ${path ?? 'none'}`,
        {
          hint: 'the two must be the same, letter by letter; look at them: qemu-img info -U --backing-chain, virsh dumpxml',
        },
      );
    }
    if (header === null || path === undefined) break;
    header = header.format === 'qcow2' ? (await readImageInfo(path, 'qcow2', { inUse: true })).backing : null;
  }
  return below;
}

function volumeError(
  code: 'VOLUME_UNSUPPORTED' | 'VOLUME_ENCRYPTED' | 'VOLUME_SHARED',
  what: string,
  why: string,
): SnapshotError {
  return new SnapshotError(code, `${what} ${why}`, {
    hint: 'docs/SUPPORT.md lists what each mode can do with each kind of volume; detach it, or exclude the machine',
  });
}

function refuseUnsupportedVolume(what: string, volume: DomainVolume): void {
  if (volume.device !== 'disk') throw volumeError('VOLUME_UNSUPPORTED', what, `is a ${volume.device}`);
  if (volume.sourceKind !== 'file')
    throw volumeError('VOLUME_UNSUPPORTED', what, `is a ${volume.sourceKind} volume, not an image file`);
  if (volume.shareable)
    throw volumeError('VOLUME_SHARED', what, 'is shared with other machines, which would not be stopped');
  if (volume.transient)
    throw volumeError('VOLUME_UNSUPPORTED', what, 'is transient: its changes are thrown away');
  if (volume.encrypted) throw volumeError('VOLUME_ENCRYPTED', what, 'is encrypted; its overlay would not be');
  if (volume.format === 'raw') {
    throw new SnapshotError('VOLUME_RAW', `${what} is a raw image; after mode "save" it would be qcow2`, {
      hint: `with the machine off: qemu-img convert -O qcow2, and change its definition; or wait for mode "disk"`,
    });
  }
  if (volume.format !== 'qcow2')
    throw volumeError('VOLUME_UNSUPPORTED', what, `has the format ${volume.format ?? 'unknown'}`);
}

async function resolveImage(what: string, image: string): Promise<string> {
  try {
    const file = await realpath(image);
    if (!(await lstat(file)).isFile())
      throw volumeError('VOLUME_UNSUPPORTED', what, `is not a regular file: ${file}`);
    return file;
  } catch (error) {
    if (error instanceof SnapshotError) throw error;
    throw new SnapshotError('MISSING_NECESSARY_FILES', `${what}: ${image} cannot be found`, {
      hint: 'the machine runs on an image that has no name any more: do not stop it before you have copied its disk',
      cause: error,
    });
  }
}

async function refuseOtherUsers(what: string, file: string, uuid: string): Promise<void> {
  const writer = (await foreignWriters(file, uuid))[0];
  if (writer === undefined) return;
  throw new SnapshotError(
    'IMAGE_LOCKED',
    `${what}: process ${writer.pid} (${writer.command}) has ${file} open for writing`,
    {
      hint: 'end that process first: with its lock the machine could not come back',
      retryable: true,
    },
  );
}

/** The frozen image is a second name of the image, and the overlay is renamed: neither crosses a file system. */
async function requireUsableRetainDirectory(
  what: string,
  file: string,
  configured: string | null,
): Promise<void> {
  const directory = retainDirectoryFor(file, configured);
  if (!(await sameFileSystem(directory, file))) {
    throw new SnapshotError(
      'RETAIN_DIRECTORY_ELSEWHERE',
      `${what}: ${directory} is not on the file system of ${file}`,
      {
        hint: 'leave retainDirectory unset, or choose one on the same file system as the images',
      },
    );
  }
  await requireOwnDirectory(directory);
  if (configured !== null) await requireTraversable(what, configured, file);
  for (const path of [join(file, '..'), directory]) {
    try {
      await access(path, constants.W_OK | constants.X_OK);
      // access(2) lets root pass a directory on a read-only file system only where it says EROFS: it does.
    } catch (error) {
      if (path === directory && isErrno(error, 'ENOENT')) continue;
      throw new SnapshotError('RETAIN_DIRECTORY_READ_ONLY', `${what}: ${path} cannot be written`, {
        hint: 'the image is replaced by renaming, in its own directory: mount it read-write for this agent',
        cause: error,
      });
    }
  }
}

/**
 * Memory states and frozen images pass through a directory: nobody but root may be able to change what is in it,
 * or to have put it there.
 */
async function requireOwnDirectory(path: string): Promise<void> {
  if (!(await exists(path))) return;
  const found = await lstat(path);
  if (found.isDirectory() && found.uid === 0 && (found.mode & 0o022) === 0) return;
  throw new SnapshotError(
    'WORK_DIRECTORY_UNSAFE',
    `${path} is not a directory of root that only root can change`,
    {
      hint: `ls -ld ${path}; move it away, or: chown root: ${path} && chmod go-w ${path}`,
    },
  );
}

/**
 * The running machine's image belongs to QEMU's user; every directory on the way to the frozen image must let
 * that user through, or the machine could not come back.
 */
async function requireTraversable(what: string, directory: string, image: string): Promise<void> {
  const { uid, gid } = await stat(image);
  for (let path = directory; path !== '/'; path = dirname(path)) {
    if (uid === 0 || !(await exists(path))) continue;
    const { mode, uid: owner, gid: group } = await stat(path);
    const bit = owner === uid ? 0o100 : group === gid ? 0o010 : 0o001;
    if ((mode & bit) !== 0) continue;
    throw new SnapshotError(
      'RETAIN_DIRECTORY_CLOSED',
      `${what}: QEMU's user (${uid}) cannot get through ${path}`,
      {
        hint: `chmod o+x ${path}, or leave retainDirectory unset`,
      },
    );
  }
}

function refuseUnsuitableSet(name: string, volumes: readonly PlannedVolume[]): void {
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

async function planNvram(definition: DomainXml, workDirectory: string): Promise<SavePlan['nvram']> {
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

/** The memory state goes to the RAM disk when memory × 1.05 fits, else beside the images (SC-02). */
async function placeState(
  memoryBytes: number,
  volumes: readonly PlannedVolume[],
  request: PreflightRequest,
  name: string,
): Promise<{ readonly file: string; readonly onRamDisk: boolean; readonly warnings: readonly string[] }> {
  const fileName = `${volumes[0]?.target ?? 'machine'}.state`;
  const beside = join(volumes[0]?.workDirectory ?? '', fileName);
  if (request.ramDisk === null) return { file: beside, onRamDisk: false, warnings: [] };
  const needed = memoryBytes * spaceFactor;
  await requireOwnDirectory(request.ramDisk);
  const free = Math.min(await freeBytes(request.ramDisk), await spareMemoryBytes(request.ramDisk));
  if (free >= needed)
    return { file: join(request.ramDisk, request.jobId, fileName), onRamDisk: true, warnings: [] };
  const warning = `the RAM disk ${request.ramDisk} has ${formatBytes(free)} free, ${name} needs up to ${formatBytes(needed)}: its memory is saved beside its images, and the pause is longer`;
  return { file: beside, onRamDisk: false, warnings: [warning] };
}

/**
 * What a RAM disk is made of: memory that the host can spare. The state grows while QEMU still holds the guest's
 * memory, and a host without memory kills machines.
 */
async function spareMemoryBytes(directory: string): Promise<number> {
  const tmpfs = 0x01021994;
  if ((await statfs(directory)).type !== tmpfs) return Number.POSITIVE_INFINITY;
  const meminfo = await readFile('/proc/meminfo', 'utf8');
  const kib = (key: string): number =>
    Number(new RegExp(`^${key}:\\s+(\\d+) kB`, 'm').exec(meminfo)?.[1] ?? 0);
  return Math.max(0, kib('MemAvailable') - kib('MemTotal') * memoryReserveShare) * 1024;
}

/**
 * Each file system of images needs room for what the merge copies at most, and the state if it goes there.
 * @throws SnapshotError NOT_ENOUGH_DISK_SPACE
 */
async function requireSpace(volumes: readonly PlannedVolume[], stateBytes: number): Promise<void> {
  let remaining = volumes;
  // The state, where it is not on a RAM disk, stands beside the first volume.
  let bytesForState = stateBytes;
  for (let first = remaining[0]; first !== undefined; first = remaining[0]) {
    const elsewhere: PlannedVolume[] = [];
    let neededBytes = bytesForState;
    for (const volume of remaining) {
      if (await sameFileSystem(volume.file, first.file)) neededBytes += volume.allocatedBytes;
      else elsewhere.push(volume);
    }
    const needed = neededBytes * spaceFactor;
    remaining = elsewhere;
    bytesForState = 0;
    const free = await freeBytes(first.file);
    if (free < needed) {
      throw new SnapshotError(
        'NOT_ENOUGH_DISK_SPACE',
        `the file system of ${first.file} has ${formatBytes(free)} free; the backup needs up to ${formatBytes(needed)} there while it runs`,
        {
          hint: `free at least ${formatBytes(needed - free)}: df -h ${join(first.file, '..')}`,
          retryable: true,
        },
      );
    }
  }
}
