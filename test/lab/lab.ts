import { randomUUID } from 'node:crypto';
import { copyFile } from 'node:fs/promises';
import path from 'node:path';
import { type AgentSetup, LabAgent } from './agentProcess.ts';
import { type GuestDisk, readGuestDisk } from './guestDisk.ts';
import { type GuestImage, guestImage } from './guestImage.ts';
import type { Keeper } from './keeperClient.ts';
import { type LabOptions, PrivateLibvirtd, prepareLab } from './libvirtd.ts';
import { cacheModeOf, LabMachine } from './machine.ts';
import type { MachineSpec } from './machineXml.ts';

export { type AgentResult, type AgentSetup, LabAgent } from './agentProcess.ts';
export { eventually, type EventuallyOptions } from './eventually.ts';
export type { BackgroundRun, LabOptions, RunOptions, RunResult } from './libvirtd.ts';
export { type GuestDisk, readGuestDisk, scanRing } from './guestDisk.ts';
export { LabMachine } from './machine.ts';
export type { MachineSpec, Volume, VolumeSpec } from './machineXml.ts';
export type { WriterStatus, WriterVerification } from './writerPort.ts';

/**
 * Starts a laboratory: a private libvirtd, file systems of its own, and machines whose guests prove what they
 * wrote. Several may run side by side.
 *
 * @throws Error when the machine lacks what it needs (root, packages, guest kernel), saying what to do.
 */
export async function startLab(options: LabOptions = {}): Promise<Lab> {
  const image = await guestImage();
  const { root, keeper } = await prepareLab(options);
  const lab = new Lab(root, keeper, {
    kernel: path.join(root, 'boot/vmlinuz'),
    initramfs: path.join(root, 'boot/initramfs'),
  });
  try {
    // QEMU's user may not be able to read the repository, which can stand below /root.
    await copyFile(image.kernel, lab.boot.kernel);
    await copyFile(image.initramfs, lab.boot.initramfs);
    await lab.startLibvirtd();
    return lab;
  } catch (error) {
    await lab.stop();
    throw error;
  }
}

export class Lab extends PrivateLibvirtd {
  /** What every guest boots from. */
  readonly boot: GuestImage;
  #cacheMode: 'none' | 'writeback' | undefined;

  constructor(root: string, keeper: Keeper, boot: GuestImage) {
    super(root, keeper);
    this.boot = boot;
  }

  /** Defines a machine and, unless told otherwise, starts it; returns before the guest has booted. */
  async createMachine(spec: MachineSpec, options: { readonly start?: boolean } = {}): Promise<LabMachine> {
    this.#cacheMode ??= await cacheModeOf(this.imagesDir);
    const machine = await LabMachine.define(this, this.boot, this.#cacheMode, spec);
    if (options.start !== false) await machine.start();
    return machine;
  }

  /** A machine that somebody else has defined, such as a restored one. */
  async findMachine(name: string): Promise<LabMachine> {
    return LabMachine.find(this, name);
  }

  /** Writes an agent's configuration and makes its directories; several need names. */
  async installAgent(setup: AgentSetup = {}): Promise<LabAgent> {
    return LabAgent.install(this, setup);
  }

  /** What the writer has left in an image, wherever that stands. */
  async readDisk(file: string, options: { readonly regionMiB?: number } = {}): Promise<GuestDisk> {
    return readGuestDisk(this, file, options);
  }

  /**
   * Mounts a RAM disk of this size inside the namespace, for tests of full file systems, and returns where.
   * Guests that run already see it. `run('umount', [path])` takes it away earlier than `stop`.
   */
  async smallTmpfs(sizeMiB: number): Promise<string> {
    const target = await this.#mountPoint();
    await this.run('mount', ['-t', 'tmpfs', '-o', `size=${sizeMiB}m,mode=0755`, 'small', target]);
    return target;
  }

  /** The same with a file system in a file: `xfs` and `btrfs` have reflinks. */
  async loopFilesystem(type: 'ext4' | 'xfs' | 'btrfs', sizeMiB: number): Promise<string> {
    const target = await this.#mountPoint();
    const image = path.join(this.root, 'tmp', `${path.basename(target)}.img`);
    await this.run('truncate', ['-s', `${sizeMiB}M`, image]);
    await this.run(`mkfs.${type}`, [type === 'ext4' ? '-q' : '-f', image]);
    // The kernel frees the loop device with the last mount (autoclear).
    await this.run('mount', ['-t', type, '-o', 'loop', image, target]);
    return target;
  }

  async #mountPoint(): Promise<string> {
    const target = path.join(this.root, 'mounts', randomUUID().slice(0, 8));
    await this.run('mkdir', ['-p', target]);
    return target;
  }
}
