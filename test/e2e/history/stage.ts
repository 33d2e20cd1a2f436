import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { parseManifest } from '../../../storage/manifest.ts';
import { eventually, type Lab, type LabMachine, startLab } from '../../lab/lab.ts';
import { qemuIo } from '../../lab/qemuIo.ts';
import type { AgentRequest } from '../agentRunner.ts';
import { answerOf, artifact, type StoredBackup, TestAgent } from '../support.ts';

const name = 'sp-history';
const mib = 1024 * 1024;
/** The writer's part of each volume ends here. */
const ringEndMiB = 17;
/** Most changes begin in this much behind it. */
const hotMiB = 4;
/** More backups are not kept in a storage. */
const keptMax = 6;

export type Victim = 'agent' | 'libvirtd' | 'qemu';
export type Mode = 'disk' | 'live' | 'save' | 'offline';

/** What a volume held at an instant: an image of it, and its size. */
interface Reference {
  readonly file: string;
  readonly sizeBytes: number;
}
type References = ReadonlyMap<string, Reference>;

/**
 * A machine whose disks are changed, backed up and restored. Nobody writes but this stage, so that an image of each
 * volume, made before a backup, is what the backup must hold.
 */
export class HistoryStage implements AsyncDisposable {
  readonly lab: Lab;
  readonly agent: TestAgent;
  readonly #storages: Readonly<Record<string, string>>;
  readonly #random: () => number;
  readonly #references = new Map<string, References>();
  #machine: LabMachine;
  #images = 0;

  private constructor(
    parts: { readonly lab: Lab; readonly agent: TestAgent; readonly machine: LabMachine },
    storages: Readonly<Record<string, string>>,
    random: () => number,
  ) {
    this.lab = parts.lab;
    this.agent = parts.agent;
    this.#machine = parts.machine;
    this.#storages = storages;
    this.#random = random;
  }

  static async start(random: () => number): Promise<HistoryStage> {
    const lab = await startLab();
    try {
      const agent = await TestAgent.install(lab);
      const storages = { plain: agent.setup.storageDir, reflink: await lab.loopFilesystem('xfs', 1500) };
      await agent.setup.configure({
        storages: Object.fromEntries(
          Object.entries(storages).map(([storage, where]) => [storage, { kind: 'directory', path: where }]),
        ),
        rest: { policies: { default: { storages: ['plain'] } } },
      });
      await lab.run('mkdir', [path.join(lab.root, 'references')]);
      const volumes = [
        { target: 'vda', prefillMiB: 8 },
        { target: 'vdb', sizeMiB: 48 },
      ];
      const machine = await lab.createMachine({ name, memoryMiB: 96, rate: 50, volumes });
      const stage = new HistoryStage({ lab, agent, machine }, storages, random);
      await stage.#quiet();
      return stage;
    } catch (error) {
      await lab.stop();
      throw error;
    }
  }

  async isRunning(): Promise<boolean> {
    return (await this.#machine.state()).startsWith('running');
  }

  /** Volumes that the machine has now. */
  get targets(): readonly string[] {
    return this.#machine.volumes.map(({ target }) => target);
  }

  /** Volumes that were stored as increments, and compared. */
  increments = 0;

  /** True once there is something to restore. */
  get hasBackup(): boolean {
    return this.#references.size > 0;
  }

  /** Writes, zeroes and discards at random places, also over what was written before. */
  async change(): Promise<string> {
    const done: string[] = [];
    for (const { target, path: image } of this.#machine.volumes) {
      const sizeKiB = (await this.#sizeOf(image)) / 1024;
      const commands = Array.from({ length: 1 + this.#upTo(6) }, () => this.#command(sizeKiB));
      if (await this.isRunning())
        await qemuIo(this.lab, this.#machine, target, [...commands.map(quiet), 'flush']);
      else
        await this.lab.run('qemu-io', [
          '-f',
          'qcow2',
          '-d',
          'unmap',
          image,
          ...commands.flatMap((text) => ['-c', quiet(text)]),
        ]);
      done.push(`${commands.length} in ${target}`);
    }
    return `changes: ${done.join(', ')}`;
  }

  /** One of qemu-io's commands, in sectors of 512 bytes or in whole clusters. */
  #command(sizeKiB: number): string {
    const fromKiB = ringEndMiB * 1024;
    const unitKiB = this.#random() < 0.5 ? 0.5 : 64;
    const lengthKiB = Math.max(unitKiB, Math.floor((this.#random() ** 3 * 4096) / unitKiB) * unitKiB);
    const units = Math.floor((sizeKiB - fromKiB - lengthKiB) / unitKiB);
    if (units < 1) return `write -P 9 ${fromKiB}k 512`;
    // Mostly where others wrote: what an increment misses shows only over something.
    const hotUnits = this.#random() < 0.75 ? Math.min(units, (hotMiB * 1024) / unitKiB) : units;
    const where = `${(fromKiB + this.#upTo(hotUnits) * unitKiB) * 1024} ${lengthKiB * 1024}`;
    const kind = this.#random();
    if (kind < 0.55) return `write -P ${1 + this.#upTo(254)} ${where}`;
    if (kind < 0.7) return `write -z ${where}`;
    if (kind < 0.85) return `write -z -u ${where}`;
    return `discard ${where}`;
  }

  /** Gives a volume another size; smaller only when the machine is off. */
  async resize(): Promise<string> {
    const { target, path: image } = this.#anyVolume();
    const nowMiB = (await this.#sizeOf(image)) / mib;
    if (await this.isRunning()) {
      const size = nowMiB + 1 + this.#upTo(8);
      const resize = ['-c', 'qemu:///system', 'blockresize', this.#machine.uuid, target, `${size}M`];
      const refused = await this.lab.run('virsh', resize, { check: false });
      if (refused.exitCode === 0) return `${target} grows to ${size} MiB`;
      // A QEMU that was killed has left a bitmap that cannot be used (docs/BEHAVIOUR.md), and this is the way out.
      if (!refused.stderr.includes('is inconsistent')) throw new Error(refused.stderr);
      await this.agent.ask({ kind: 'release', machine: name });
      await this.lab.run('virsh', resize);
      return `${target} grows to ${size} MiB, after a release`;
    }
    const size = ringEndMiB + 8 + this.#upTo(60);
    await this.lab.run('qemu-img', ['resize', '-q', '--shrink', image, `${size}M`]);
    return `${target} goes from ${nowMiB} to ${size} MiB`;
  }

  /**
   * Cuts an image of the machine, which is off, somewhere in its sectors, and gives it back its size: what was behind
   * the cut reads as zeros, and no bitmap tells of it within the cluster that was cut.
   */
  async cut(): Promise<string> {
    const { target, path: image } = this.#anyVolume();
    const sizeBytes = await this.#sizeOf(image);
    const fromBytes = ringEndMiB * mib;
    const cuts = Array.from(
      { length: 1 + this.#upTo(2) },
      () => fromBytes + 512 * this.#upTo((sizeBytes - fromBytes) / 512 - 1),
    );
    for (const size of [...cuts, sizeBytes])
      await this.lab.run('qemu-img', ['resize', '-q', '--shrink', image, String(size)]);
    return `${target} is cut at ${cuts.join(', ')}`;
  }

  /** Switches the machine off, or on again. */
  async switch(): Promise<string> {
    if (await this.isRunning()) {
      await this.#machine.destroy();
      return 'off';
    }
    await this.#machine.start();
    await this.#quiet();
    return 'on';
  }

  /** Gives the machine, which is off, a third volume, or takes that away. */
  async attachOrDetach(): Promise<string> {
    const { uuid } = this.#machine;
    const has = this.targets.includes('vdc');
    if (has) {
      await this.lab.virsh('detach-disk', uuid, 'vdc', '--config');
    } else {
      this.#images += 1;
      const image = path.join(this.lab.imagesDir, `third-${this.#images}.qcow2`);
      const form = ['-f', 'qcow2', '-o', `cluster_size=${this.#random() < 0.5 ? '64k' : '2M'}`];
      await this.lab.run('qemu-img', ['create', '-q', ...form, image, `${ringEndMiB + 20}M`]);
      const how = ['--config', '--driver', 'qemu', '--subdriver', 'qcow2', '--targetbus', 'virtio'];
      await this.lab.virsh('attach-disk', uuid, image, 'vdc', ...how);
    }
    this.#machine = await this.lab.findMachine(name);
    return has ? 'vdc goes' : 'vdc comes';
  }

  /** Backs up, and compares what the storages have got with what the machine holds. */
  async backUp(t: Test, mode: Mode, storages: readonly string[]): Promise<void> {
    const references = await this.#remember();
    const answer = await this.agent.backup(this.#machine, { mode, storages });
    t.equal(
      answer.job?.state,
      'finished',
      `${answer.error?.code} ${answer.error?.message}\n${answer.log.slice(-2000)}`,
    );
    t.equal(await this.#compareNew(t, references), storages.length, 'each storage has a new backup');
  }

  /** Backs up and kills somebody meanwhile; what is listed afterwards must be right. */
  async backUpWithKill(t: Test, mode: Mode, storages: readonly string[], victim: Victim): Promise<void> {
    const references = await this.#remember();
    const request: AgentRequest = {
      kind: 'backup',
      machine: this.#machine.uuid,
      mode,
      storages: [...storages],
    };
    const run = this.agent.start(request);
    await sleep(400 + this.#random() * 3000);
    if (victim === 'agent') await run.kill9();
    if (victim === 'libvirtd') {
      await this.lab.killLibvirtd();
      await this.lab.startLibvirtd();
    }
    if (victim === 'qemu' && (await this.lab.qemuPid(name)) !== undefined) await this.lab.killQemu(name);
    const answer = await answerOf(run);
    await this.agent.ask({ kind: 'recover' });
    const found = await this.#compareNew(t, references);
    t.comment(`${answer.job?.state ?? 'killed'} ${answer.error?.code ?? ''}, ${found} new backups`);
    t.same(
      (await this.agent.jobs()).filter(({ holdsMachine }) => holdsMachine),
      [],
      'no job holds the machine',
    );
    await eventually(async () => /^(running|shut off)/.test(await this.#machine.state()));
    if (await this.isRunning()) await this.#quiet();
    else if (mode !== 'offline') {
      await this.#machine.start();
      await this.#quiet();
    }
  }

  /** Brings the machine back to any of the backups, and compares its disks with what they were then. */
  async restore(t: Test): Promise<string> {
    const ids = [...this.#references.keys()];
    const id = ids[this.#upTo(ids.length)] ?? '';
    const answer = await this.agent.restore(id, { inPlace: true, start: 'none', safetyCopy: false });
    t.equal(
      answer.job?.state,
      'finished',
      `${answer.error?.code} ${answer.error?.message}\n${answer.log.slice(-2000)}`,
    );
    this.#machine = await this.lab.findMachine(name);
    const references = this.#references.get(id) ?? new Map<string, Reference>();
    t.same(this.targets, [...references.keys()], 'the machine has the volumes that it had');
    for (const { target, path: image } of this.#machine.volumes)
      await this.#compare(t, image, references.get(target), `restored ${target}`);
    return id;
  }

  /** Deletes backups at random where there are many, the parents of others among them; the others must not notice. */
  async thin(t: Test): Promise<string | undefined> {
    const deleted: string[] = [];
    for (const [storage, root] of Object.entries(this.#storages)) {
      const stored = (await this.#stored()).filter(({ directory }) => directory.startsWith(`${root}/`));
      for (let left = stored.length; left > keptMax; left -= 1) {
        const [backup] = stored.splice(this.#upTo(stored.length), 1);
        if (backup === undefined) break;
        const { id } = backup.manifest;
        await this.#compareBackup(t, backup, this.#references.get(id) ?? new Map());
        const answer = await this.agent.ask({ kind: 'delete', backup: id, storage });
        t.equal(answer.result, id, answer.log);
        deleted.push(`${id} in ${storage}`);
      }
    }
    await this.#forgetReferences();
    return deleted.length === 0 ? undefined : `deleted ${deleted.join(', ')}`;
  }

  /** Of backups that are in no storage any more. */
  async #forgetReferences(): Promise<void> {
    const stored = new Set((await this.#stored()).map(({ manifest }) => manifest.id));
    for (const [id, references] of this.#references) {
      if (stored.has(id)) continue;
      this.#references.delete(id);
      await this.lab.run('rm', ['-f', ...[...references.values()].map(({ file }) => file)]);
    }
  }

  /** Whatever happened since: every backup in every storage still holds what it held. */
  async compareAll(t: Test): Promise<void> {
    for (const backup of await this.#stored()) {
      const references = this.#references.get(backup.manifest.id);
      t.ok(references !== undefined, `${backup.directory} is known`);
      await this.#compareBackup(t, backup, references ?? new Map());
      const verified = await this.agent.ask({ kind: 'verify', backup: backup.manifest.id });
      t.match(verified.result, { ok: true });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.lab.stop();
  }

  /** The writer stops; nothing changes any more. */
  async #quiet(): Promise<void> {
    await this.#machine.waitUntilWriting();
    await this.#machine.pauseWriter();
  }

  async #remember(): Promise<References> {
    const references = new Map<string, Reference>();
    for (const { target, path: image } of this.#machine.volumes) {
      this.#images += 1;
      const file = path.join(this.lab.root, 'references', `${this.#images}.qcow2`);
      await this.lab.run('qemu-img', ['convert', '-U', '-f', 'qcow2', '-O', 'qcow2', image, file]);
      references.set(target, { file, sizeBytes: await this.#sizeOf(image) });
    }
    return references;
  }

  /** Backups that were not there before, each compared; their number. */
  async #compareNew(t: Test, references: References): Promise<number> {
    const known = new Set(this.#references.keys());
    let found = 0;
    for (const backup of await this.#stored()) {
      if (known.has(backup.manifest.id)) continue;
      found += 1;
      this.#references.set(backup.manifest.id, references);
      await this.#compareBackup(t, backup, references);
    }
    return found;
  }

  async #compareBackup(t: Test, backup: StoredBackup, references: References): Promise<void> {
    const { volumes } = backup.manifest;
    t.same(
      volumes.map(({ target }) => target),
      [...references.keys()],
      'it holds the volumes that the machine had',
    );
    for (const { target, virtualSizeBytes, read, reason } of volumes) {
      t.equal(virtualSizeBytes, references.get(target)?.sizeBytes, `the size of ${target}`);
      if (read === 'increment') this.increments += 1;
      const how = `${target} in ${backup.directory} (${read}${reason === undefined ? '' : `: ${reason}`})`;
      await this.#compare(t, artifact(backup, target), references.get(target), how);
    }
  }

  async #compare(t: Test, image: string, reference: Reference | undefined, what: string): Promise<void> {
    const args = ['compare', '-U', '-f', 'qcow2', '-F', 'qcow2', image, reference?.file ?? ''];
    const { exitCode, stdout, stderr } = await this.lab.run('qemu-img', args, { check: false });
    t.equal(exitCode, 0, `${what}: ${stdout}${stderr}`);
    const checked = await this.lab.run('qemu-img', ['check', '-q', '-U', '-f', 'qcow2', image], {
      check: false,
    });
    t.equal(checked.exitCode, 0, `${what} is in order: ${checked.stdout}${checked.stderr}`);
  }

  async #stored(): Promise<readonly StoredBackup[]> {
    const found: StoredBackup[] = [];
    for (const root of Object.values(this.#storages)) {
      const machineDirectory = path.join(root, name);
      const there = await this.lab.run('test', ['-d', machineDirectory], { check: false });
      if (there.exitCode !== 0) continue;
      for (const entry of await readdir(this.lab.outside(machineDirectory))) {
        if (entry.startsWith('.')) continue;
        const directory = path.join(machineDirectory, entry);
        const text = await readFile(this.lab.outside(path.join(directory, 'manifest.json')), 'utf8');
        found.push({ directory, manifest: parseManifest(text) });
      }
    }
    return found;
  }

  async #sizeOf(image: string): Promise<number> {
    const { stdout } = await this.lab.run('qemu-img', ['info', '-U', '--output=json', image]);
    return Number(/"virtual-size": (\d+)/.exec(stdout)?.[1]);
  }

  #anyVolume(): LabMachine['volumes'][number] {
    const volume = this.#machine.volumes[this.#upTo(this.#machine.volumes.length)];
    if (volume === undefined) throw new Error('the machine has no volumes');
    return volume;
  }

  #upTo(count: number): number {
    return Math.floor(this.#random() * count);
  }
}

/** qemu-io's command without its answer. */
function quiet(command: string): string {
  return command.replace(/^(\w+)/, '$1 -q');
}
