import { randomBytes, randomUUID } from 'node:crypto';
import { readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { execa } from 'execa';
import { eventually } from './eventually.ts';
import { type GuestDisk, readGuestDisk } from './guestDisk.ts';
import type { GuestImage } from './guestImage.ts';
import { imageInfo } from './imageInfo.ts';
import type { PrivateLibvirtd } from './libvirtd.ts';
import { type MachineSpec, machineXml, type Volume, type VolumeSpec, writerPort } from './machineXml.ts';
import {
  askWriter,
  type WriterStatus,
  type WriterVerification,
  writerStatus,
  writerVerification,
} from './writerPort.ts';

const mib = 1024 * 1024;

/** A test machine: its definition, its volumes and the writer inside. */
export class LabMachine {
  readonly name: string;
  readonly uuid: string;
  readonly volumes: readonly Volume[];
  readonly #libvirtd: PrivateLibvirtd;
  readonly #regionMiB: number | undefined;

  constructor(
    libvirtd: PrivateLibvirtd,
    identity: { readonly name: string; readonly uuid: string },
    volumes: readonly Volume[],
    regionMiB?: number,
  ) {
    const { name, uuid } = identity;
    this.#regionMiB = regionMiB;
    this.#libvirtd = libvirtd;
    this.name = name;
    this.uuid = uuid;
    this.volumes = volumes;
  }

  /** Creates the images and defines the machine; it does not run yet. */
  static async define(
    libvirtd: PrivateLibvirtd,
    boot: GuestImage,
    cacheMode: 'none' | 'writeback',
    spec: MachineSpec,
  ): Promise<LabMachine> {
    if (!spec.name.startsWith('sp-'))
      throw new Error(`the name of a test machine begins with sp-: ${spec.name}`);
    const uuid = spec.uuid ?? randomUUID();
    const volumes: Volume[] = [];
    for (const volume of spec.volumes ?? [{ target: 'vda' }]) {
      volumes.push(await createVolume(libvirtd, spec.name, volume));
    }
    const xml = machineXml({ spec, uuid, volumes, ...boot, cacheMode });
    const file = path.join(libvirtd.root, 'tmp', `${uuid}.xml`);
    await writeFile(file, xml);
    await libvirtd.virsh('define', file);
    await rm(file);
    return new LabMachine(libvirtd, { name: spec.name, uuid }, volumes, spec.regionMiB);
  }

  /** A machine that somebody else has defined, such as a restored one. */
  static async find(libvirtd: PrivateLibvirtd, name: string): Promise<LabMachine> {
    const uuid = (await libvirtd.virsh('domuuid', name)).trim();
    const rows = (await libvirtd.virsh('domblklist', '--details', uuid)).split('\n');
    const volumes: Volume[] = [];
    for (const row of rows) {
      const [, device, target, file] = row.trim().split(/\s+/);
      if (device !== 'disk' || target === undefined || file === undefined) continue;
      const info = await imageInfo(libvirtd, file);
      volumes.push({ target, path: file, format: info.format === 'raw' ? 'raw' : 'qcow2', readonly: false });
    }
    return new LabMachine(libvirtd, { name, uuid }, volumes);
  }

  /** The image of a volume, by target; `vda` if not given. */
  imagePath(target = 'vda'): string {
    const volume = this.volumes.find((each) => each.target === target);
    if (volume === undefined) throw new Error(`${this.name} has no volume ${target}`);
    return volume.path;
  }

  async start(): Promise<void> {
    await this.#libvirtd.virsh('start', this.uuid);
  }

  /** What the writer holds in memory. */
  async writerStatus(timeoutMs = 10_000): Promise<WriterStatus> {
    return writerStatus.parse(await this.command('status', timeoutMs));
  }

  /** Stops the writer between two rounds; all disks then hold the same sequence number. */
  async pauseWriter(): Promise<WriterStatus> {
    return writerStatus.parse(await this.command('pause'));
  }

  async continueWriter(): Promise<WriterStatus> {
    return writerStatus.parse(await this.command('go'));
  }

  /** The guest reads its disks back, past its page cache, and compares them with its memory. */
  async verifyFromInside(): Promise<WriterVerification> {
    return writerVerification.parse(await this.command('verify', 60_000));
  }

  /** What a volume holds of the writer's work, read past the guest. */
  async readDisk(target = 'vda'): Promise<GuestDisk> {
    return readGuestDisk(this.#libvirtd, this.imagePath(target), { regionMiB: this.#regionMiB });
  }

  /** Sends one command line to the writer (README.md lists them). */
  async command(text: string, timeoutMs = 30_000): Promise<unknown> {
    return askWriter(this.#libvirtd.outside(await this.#writerSocket()), text, timeoutMs);
  }

  /** Waits until the writer has completed at least `rounds` rounds since its start (or since `after`). */
  async waitUntilWriting(
    options: { readonly rounds?: number; readonly after?: number } = {},
  ): Promise<WriterStatus> {
    const look = async (): Promise<WriterStatus | undefined> => {
      const status = await this.writerStatus(5_000);
      const wanted = (options.after ?? status.firstSequence - 1) + (options.rounds ?? 1);
      return status.disks.every((disk) => disk.sequence >= wanted) ? status : undefined;
    };
    try {
      return await eventually(look, { timeoutMs: 60_000, intervalMs: 50 });
    } catch (error) {
      throw new Error(`${this.name} does not write; its console: ${await this.console()}`, { cause: error });
    }
  }

  /** What the guest has printed since the machine was defined. */
  async console(): Promise<string> {
    return readFile(
      path.join(this.#libvirtd.root, `log/qemu/${encodeURIComponent(this.name)}-console.log`),
      'utf8',
    );
  }

  /** The definition: what runs, or what the next start uses. */
  async xml(kind: 'live' | 'inactive' = 'live'): Promise<string> {
    const flags = kind === 'inactive' ? ['--inactive'] : [];
    return this.#libvirtd.virsh('dumpxml', ...flags, '--security-info', this.uuid);
  }

  /** libvirt's words, such as `running (booted)` or `shut off (saved)`. */
  async state(): Promise<string> {
    return (await this.#libvirtd.virsh('domstate', '--reason', this.uuid)).trim();
  }

  async suspend(): Promise<void> {
    await this.#libvirtd.virsh('suspend', this.uuid);
  }

  async resume(): Promise<void> {
    await this.#libvirtd.virsh('resume', this.uuid);
  }

  /** Power off at once; SIGTERM for QEMU, so that it closes its images. */
  async destroy(): Promise<void> {
    await this.#libvirtd.virsh('destroy', '--graceful', this.uuid);
  }

  /** Ends and undefines the machine and removes its images. */
  async remove(): Promise<void> {
    if (!(await this.state()).startsWith('shut off')) await this.#libvirtd.virsh('destroy', this.uuid);
    await this.#libvirtd.virsh(
      'undefine',
      '--nvram',
      '--checkpoints-metadata',
      '--snapshots-metadata',
      this.uuid,
    );
    for (const volume of this.volumes) await this.#libvirtd.run('rm', ['-f', volume.path]);
  }

  async #writerSocket(): Promise<string> {
    const xml = await this.xml('live');
    const channel = xml.split('<channel').find((part) => part.includes(`name='${writerPort}'`));
    const socket = /<source mode='bind' path='([^']+)'/.exec(channel ?? '')?.[1];
    if (socket === undefined) throw new Error(`${this.name} does not run: ${await this.state()}`);
    return socket;
  }
}

async function createVolume(libvirtd: PrivateLibvirtd, machine: string, spec: VolumeSpec): Promise<Volume> {
  const format = spec.format ?? 'qcow2';
  const file = spec.path ?? path.join(libvirtd.imagesDir, `${machine}-${spec.target}.${format}`);
  const volume: Volume = { target: spec.target, path: file, format, readonly: spec.readonly ?? false };
  const exists = (await libvirtd.run('test', ['-e', file], { check: false })).exitCode === 0;
  if (exists) return volume;
  const sizeMiB = spec.sizeMiB ?? 64;
  const backing = spec.backing === undefined ? [] : ['-F', spec.backing.format, '-b', spec.backing.path];
  const size = spec.backing !== undefined && spec.sizeMiB === undefined ? [] : [`${sizeMiB}M`];
  await libvirtd.run('qemu-img', ['create', '-q', '-f', format, ...backing, file, ...size]);
  if (spec.prefillMiB !== undefined) await prefill(libvirtd, volume, sizeMiB, spec.prefillMiB);
  return volume;
}

/** Random data, so that neither zeros nor compression make it small. */
async function prefill(
  libvirtd: PrivateLibvirtd,
  volume: Volume,
  sizeMiB: number,
  fillMiB: number,
): Promise<void> {
  const pattern = path.join(libvirtd.root, 'tmp', `prefill-${randomUUID()}`);
  await writeFile(pattern, randomBytes(mib));
  const offsets = Array.from({ length: fillMiB }, (_, index) => sizeMiB - fillMiB + index);
  const commands = offsets.flatMap((offset) => ['-c', `write -q -s ${pattern} ${offset}M 1M`]);
  try {
    await libvirtd.run('qemu-io', ['-f', volume.format, ...commands, volume.path]);
  } finally {
    await rm(pattern);
  }
}

/** `none` where images can be opened with O_DIRECT, as on most hosts; `writeback` where they cannot. */
export async function cacheModeOf(directory: string): Promise<'none' | 'writeback'> {
  const probe = path.join(directory, `.o-direct-${randomUUID()}`);
  const args = ['if=/dev/zero', `of=${probe}`, 'bs=4096', 'count=1', 'oflag=direct'];
  const { failed } = await execa('dd', args, { reject: false, timeout: 10_000 });
  await rm(probe, { force: true });
  return failed ? 'writeback' : 'none';
}
