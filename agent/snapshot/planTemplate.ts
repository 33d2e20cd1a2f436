import { open, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { type ImageFormat, type ImageInfo, QemuImageError, readImageInfo } from '../../common/qemuImage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { unlessGone } from '../hypervisor/unlessGone.ts';
import { SnapshotError } from './errors.ts';
import { allocatedBytesOf, ownerOf } from './images.ts';
import { refuseOtherUsers, resolveImage, volumeError } from './planVolume.ts';
import type { ReadPlan } from './readPlan.ts';

export interface TemplatePlanRequest {
  readonly jobId: string;
  readonly machine: { readonly uuid: string; readonly name: string };
  /** Absolute path. */
  readonly image: string;
  readonly modeReason: string;
  /** Where the definition waits, and sockets are made. */
  readonly runDirectory: string;
}

/** Target of a template's only volume. */
export const templateTarget = 'vda';

/**
 * Looks at an image that no machine runs, and plans a backup of it. Images of running machines may stand on it.
 * Changes nothing.
 * @throws SnapshotError with what is unsuitable and what to do about it
 */
export async function planTemplate(hypervisor: Hypervisor, request: TemplatePlanRequest): Promise<ReadPlan> {
  const { machine, image, jobId, runDirectory } = request;
  const what = `template ${machine.name}`;
  const file = await resolveImage(what, image);
  await requireAtRest(hypervisor, machine, file);
  const format = await formatOf(file);
  const info = await readUnlocked(what, file, format);
  if (info.corrupt) {
    throw new SnapshotError('CORRUPT_DISK_IMAGE_FOUND', `${what}: ${file} is marked corrupt`, {
      hint: `qemu-img check ${file}`,
    });
  }
  if (info.encrypted)
    throw volumeError('VOLUME_ENCRYPTED', what, 'is encrypted; what is made of it would not be');
  const host = await hypervisor.hostInfo();
  return {
    machine,
    host: { name: host.hostName, libvirt: host.libvirtVersion, qemu: host.qemuVersion },
    mode: 'offline',
    modeReason: request.modeReason,
    consistency: 'offline',
    template: true,
    checkpoint: null,
    extras: [],
    socketDirectory: null,
    nvram: null,
    volumes: [
      {
        target: templateTarget,
        kind: 'file',
        encrypted: false,
        image,
        file,
        format,
        virtualSizeBytes: info.virtualSizeBytes,
        allocatedBytes: await allocatedBytesOf(file, info.backing?.path),
        owner: await ownerOf(file),
        scratch: null,
        keepsBitmaps: false,
        reads: {},
        since: null,
      },
    ],
    workDirectories: [join(runDirectory, `${jobId}-definition`)],
    warnings: [],
  };
}

/**
 * Nobody writes to a template while it is read: no process of this host has it open so, and no machine that is not
 * off has it as an image of its own.
 * @throws SnapshotError IMAGE_LOCKED, MACHINE_RUNNING
 */
export async function requireAtRest(
  hypervisor: Hypervisor,
  template: { readonly uuid: string; readonly name: string },
  file: string,
): Promise<void> {
  for (const { uuid, name, status } of await hypervisor.machines()) {
    if (status.state === 'shut-off' || status.state === 'crashed') continue;
    const definition = await unlessGone(hypervisor.definition(uuid, 'live'));
    if (definition === undefined) continue;
    for (const { path, readOnly } of DomainXml.parse(definition).volumes) {
      if (path === undefined || readOnly || (await realpath(path).catch(() => path)) !== file) continue;
      throw new SnapshotError('MACHINE_RUNNING', `${name} runs on ${file}: it is no template`, {
        hint: `stillpoint backup ${name}`,
      });
    }
  }
  await refuseOtherUsers(`template ${template.name}`, file, template.uuid);
}

/** A definition that says what the image is; a template has no other. */
export function templateDefinition({ machine, volumes }: ReadPlan): string {
  const [volume] = volumes;
  const [path = '', format = ''] = [volume?.image, volume?.format].map((value) => escapeXml(value ?? ''));
  return `<!-- The definition of a template: an image that no machine runs. It is complete enough for virsh define. -->
<domain type='qemu'>
  <name>${escapeXml(machine.name)}</name>
  <uuid>${machine.uuid}</uuid>
  <memory unit='MiB'>1024</memory>
  <os><type>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='${format}'/>
      <source file='${path}'/>
      <target dev='${templateTarget}' bus='virtio'/>
    </disk>
  </devices>
</domain>
`;
}

function escapeXml(value: string): string {
  return value.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll("'", '&apos;');
}

/** A template belongs to the administrator who named it: what its file begins with is not a guest's to choose. */
async function formatOf(file: string): Promise<ImageFormat> {
  await using handle = await open(file, 'r');
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(4), 0, 4, 0);
  return bytesRead === 4 && buffer.toString('latin1') === 'QFI\u00fb' ? 'qcow2' : 'raw';
}

/** QEMU's own lock tells of a writer on another host, too. @throws SnapshotError IMAGE_LOCKED; QemuImageError */
async function readUnlocked(what: string, file: string, format: ImageFormat): Promise<ImageInfo> {
  try {
    return await readImageInfo(file, format);
  } catch (error) {
    if (!(error instanceof QemuImageError)) throw error;
    // With its locks left aside it can be read: then it is they that refuse.
    await readImageInfo(file, format, { inUse: true });
    throw new SnapshotError('IMAGE_LOCKED', `${what}: somebody has ${file} open for writing`, {
      cause: error,
      hint: 'end that process first, or wait for it; it may be on another host',
      retryable: true,
    });
  }
}
