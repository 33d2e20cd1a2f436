import { randomUUID } from 'node:crypto';
import { readdir, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { stringify } from 'yaml';
import { listXattrs, rememberedOwner, setXattr } from '../../../common/xattr.ts';
import { DirectoryStorage } from '../../../storage/directory/directoryStorage.ts';
import {
  eventually,
  type Lab,
  type LabMachine,
  type MachineSpec,
  startLab,
  type WriterStatus,
} from '../../lab/lab.ts';
import { processGone } from '../../lab/libvirtd.ts';
import { AgentRun, type RunEnd } from './agentRun.ts';
import type { Action } from './command.ts';

/** Not root, so that a lost owner shows. */
export const imageOwner = { uid: 1200, gid: 1300, mode: 0o640 };
/** So slow that a merge can be met in the middle. */
const slowBytesPerSecond = 8 * 1024 * 1024;

/** How the machine was before something was done to it. */
export interface Remembered {
  readonly writer: WriterStatus;
  /** What the guest has said last before a crash, where it was asked again. */
  readonly acknowledged?: WriterStatus;
  readonly persistentXml: string;
  readonly autostart: boolean;
  readonly backups: readonly string[];
}

export interface RunOptions {
  /** The agent kills itself at this moment. */
  readonly crashAt?: string;
  /** The agent stops at this moment until it is released. */
  readonly haltAt?: string;
  /** With a slow merge. */
  readonly slow?: boolean;
  /** A test switch of the product. */
  readonly switches?: string;
}

/** One machine with two volumes in a laboratory, an agent for it, and a storage. */
export class CrashStage implements AsyncDisposable {
  readonly lab: Lab;
  readonly machine: LabMachine;
  readonly storage: DirectoryStorage;
  readonly stateDir: string;
  /** Sequences that a cold boot may have left out on the later volume: the round that the crash cut. */
  readonly cutRounds = new Set<number>();
  /** libvirt has crashed and may have forgotten whose the images are (docs/BEHAVIOUR.md). */
  ownersForgotten = false;
  #runs = 0;
  #bootIdMounted = false;

  private constructor(lab: Lab, machine: LabMachine) {
    this.lab = lab;
    this.machine = machine;
    this.storage = new DirectoryStorage({ name: 'local', path: path.join(lab.root, 'backups') });
    this.stateDir = path.join(lab.root, 'state');
  }

  /** Starts it all; returns when the guest writes. Autostart is on. */
  static async start(spec: Partial<MachineSpec> = {}): Promise<CrashStage> {
    const lab = await startLab();
    try {
      const volumes = spec.volumes ?? [{ target: 'vda' }, { target: 'vdb' }];
      const machine = await lab.createMachine(
        { name: 'sp-crash', regionMiB: 8, ...spec, volumes },
        { start: false },
      );
      const stage = new CrashStage(lab, machine);
      await lab.run('mkdir', [stage.storage.location, stage.stateDir]);
      const { uid, gid, mode } = imageOwner;
      for (const volume of machine.volumes) {
        await lab.run('chown', [`${uid}:${gid}`, volume.path]);
        await lab.run('chmod', [mode.toString(8), volume.path]);
      }
      await lab.virsh('autostart', machine.uuid);
      for (const slow of [false, true]) await stage.#configure(slow);
      await machine.start();
      await machine.waitUntilWriting({ rounds: 20 });
      return stage;
    } catch (error) {
      await lab.stop();
      throw error;
    }
  }

  async #configure(slow: boolean): Promise<void> {
    const config = {
      agent: { stateDir: this.stateDir, ramDisk: `${this.lab.ramDir}/stillpoint` },
      storages: { local: { kind: 'directory', path: this.storage.location } },
      policies: { default: { merge: { bandwidthBytesPerSecond: slow ? slowBytesPerSecond : 0 } } },
    };
    await writeFile(this.#config(slow), stringify(config));
  }

  #config(slow: boolean): string {
    return path.join(this.lab.root, slow ? 'slow.yaml' : 'fast.yaml');
  }

  /** Starts an agent and returns at once. */
  async begin(action: Action, options: RunOptions = {}): Promise<AgentRun> {
    this.#runs += 1;
    const gate = path.join(this.lab.root, 'tmp', `gate-${this.#runs}`);
    if (options.haltAt !== undefined) await this.lab.run('mkfifo', [gate]);
    const halt = options.haltAt === undefined ? undefined : { point: options.haltAt, gate };
    const command = { config: this.#config(options.slow ?? false), action, halt };
    return AgentRun.start(this.lab, command, {
      ...(options.crashAt === undefined ? {} : { STILLPOINT_TEST_CRASH_AT: options.crashAt }),
      ...(options.switches === undefined ? {} : { STILLPOINT_TEST_SWITCHES: options.switches }),
    });
  }

  /** Runs an agent to its end, whatever that is. */
  async run(action: Action, options: RunOptions = {}): Promise<RunEnd> {
    return (await this.begin(action, options)).ended;
  }

  async backup(options: RunOptions = {}): Promise<RunEnd> {
    return this.run({ do: 'backup', machine: this.machine.uuid }, options);
  }

  /** A new agent, which takes up what a dead one has left. */
  async recover(options: RunOptions = {}): Promise<RunEnd> {
    return this.run({ do: 'recover' }, options);
  }

  async remember(): Promise<Remembered> {
    return {
      writer: await this.machine.writerStatus(),
      persistentXml: await this.machine.xml('inactive'),
      autostart: await this.autostart(),
      backups: await this.backupIds(),
    };
  }

  async autostart(machine = this.machine): Promise<boolean> {
    return /^Autostart:\s+enable/m.test(await this.lab.virsh('dominfo', machine.uuid));
  }

  async backupIds(): Promise<string[]> {
    return (await this.storage.list()).map((entry) => entry.id ?? entry.directory);
  }

  /** Owner, group and mode of an image as they are when no QEMU has it. */
  async ownerOf(image: string): Promise<typeof imageOwner> {
    const { uid, gid, mode } = await stat(image);
    const remembered = await rememberedOwner(image);
    return { uid: remembered?.uid ?? uid, gid: remembered?.gid ?? gid, mode: mode & 0o7777 };
  }

  /** Frees the disk between two rounds. */
  async deleteBackups(): Promise<void> {
    for (const entry of await this.storage.list()) await this.storage.delete(entry);
  }

  /** Boots the guest again, where that is the owner's business, and notes which round the crash has cut. */
  async startAgain(): Promise<void> {
    // The process may be gone before libvirt has noticed, and until then the machine is "already active".
    await eventually(async () => (await this.machine.state()).startsWith('shut off'));
    await this.machine.start();
    await this.noteColdBoot();
  }

  /** After a cold boot: the round that the crash cut may be missing on the later volume, for ever. */
  async noteColdBoot(): Promise<WriterStatus> {
    const status = await this.machine.waitUntilWriting();
    this.cutRounds.add(status.firstSequence - 1);
    return status;
  }

  async isRunning(): Promise<boolean> {
    return (
      (await this.lab.qemuPid(this.machine.name)) !== undefined &&
      !(await this.machine.state()).startsWith('shut off')
    );
  }

  /** Kills QEMU and waits until libvirt has noticed. */
  async killQemu(): Promise<void> {
    await this.lab.killQemu(this.machine.name);
    await eventually(async () => (await this.machine.state()).startsWith('shut off'));
  }

  /**
   * Kills QEMU and libvirtd at one blow, as a crash of the host does; the caller kills the agent. With `newBoot`
   * what a host loses is lost too: RAM disks, libvirt's record of what runs and who uses images, and the id of the boot.
   */
  async crashHost(options: { readonly newBoot: boolean }): Promise<void> {
    // A libvirtd that sees its QEMU go would begin to give the images their owners back; a host takes both at once.
    const pids = [await this.lab.libvirtdPid(), await this.lab.qemuPid(this.machine.name)].filter(
      (pid) => pid !== undefined,
    );
    this.ownersForgotten = true;
    for (const pid of pids) {
      process.kill(pid, 'SIGKILL');
      await processGone(pid);
    }
    if (!options.newBoot) return;
    await this.lab.run('rm', ['-rf', `${this.lab.ramDir}/stillpoint`, '/run/libvirt/qemu']);
    await this.#ageLibvirtMarks();
    const bootId = path.join(this.lab.root, 'tmp', 'boot-id');
    await writeFile(bootId, `${randomUUID()}\n`);
    // Seen inside of the laboratory only. Once: mounts on top of each other double, with shared propagation, each time.
    if (this.#bootIdMounted) return;
    await this.lab.run('mount', ['--bind', bootId, '/proc/sys/kernel/random/boot_id']);
    this.#bootIdMounted = true;
  }

  /**
   * What libvirt notes at images counts until the next boot only, by the time of the boot that it notes with it: who
   * uses them would otherwise use them for ever (libvirt, virSecurityValidateTimestamp).
   */
  async #ageLibvirtMarks(): Promise<void> {
    for (const entry of await readdir(this.lab.imagesDir, { recursive: true, withFileTypes: true })) {
      const file = path.join(entry.parentPath, entry.name);
      const marks = entry.isFile() ? await listXattrs(file) : [];
      for (const mark of marks)
        if (mark.startsWith('trusted.libvirt.security.timestamp_'))
          await setXattr(file, mark, Buffer.from('1'));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.lab.stop();
  }
}
