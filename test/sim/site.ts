import { copyFile, mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';

import { Agent } from '../../agent/agent.ts';
import { repairAllOffline } from '../../agent/offlineRepair.ts';
import { Engine } from '../../agent/jobs/engine.ts';
import type { EngineListener } from '../../agent/jobs/engineListener.ts';
import type { JobRow } from '../../agent/jobs/job.ts';
import { Journal } from '../../agent/jobs/journal.ts';
import type { JobOwner } from '../../agent/jobs/owner.ts';
import { endServer } from '../../agent/restore/served.ts';
import { freeBytes } from '../../common/files.ts';
import { createLogger } from '../../common/log.ts';
import { type Config, configSchema } from '../../config/schema.ts';
import { DirectoryStorage } from '../../storage/directory/directoryStorage.ts';
import { noBounds } from '../../storage/space.ts';
import type { Storage } from '../../storage/storage.ts';
import { noteSaid } from '../secrets.ts';
import { createImage, slotCount, writeGuestBlock } from './images.ts';
import { Life, MortalJournal, type MomentListener } from './life.ts';
import { Vault, type VaultListener } from './vault.ts';
import { SimulatedWorld } from './world.ts';

/** No process of this boot, and none of any other. */
const nobody: JobOwner = { pid: 2 ** 22 + 1, startTicks: 1, bootId: 'another-boot' };
const memoryFileSystem = '/dev/shm';
/** Preflight asks for room for the memory of the machines, 64 MiB each. */
const enoughBytes = 512 * 1024 * 1024;

export interface SiteOptions {
  readonly autostart?: boolean | undefined;
  /** Its owner has suspended the machine. */
  readonly suspended?: boolean | undefined;
  /** The memory state passes through a RAM disk, which a crash of the host empties. */
  readonly ramDisk?: boolean | undefined;
  readonly targets?: readonly string[] | undefined;
  /** The machine has a channel for a guest agent, and one runs; true unless told. */
  readonly guestAgent?: boolean | undefined;
  /** What the policy says of freezing the guest; `auto` unless told. */
  readonly freeze?: 'auto' | 'never' | 'required' | undefined;
  /** Other keys of `agent`. */
  readonly agent?: Readonly<Record<string, unknown>> | undefined;
  /** Other keys of the policy. */
  readonly policy?: Readonly<Record<string, unknown>> | undefined;
  /** How many machines may be backed up into each storage at a time. */
  readonly storageMax?: number | undefined;
  /** XML among the devices of the machine. */
  readonly devices?: string | undefined;
  /**
   * `near` is on the file system of the images, `far` on another where this host has one; `vault` is a repository.
   */
  readonly storages?: readonly StorageName[] | undefined;
  /** Storages that stand in for each other, by name of their group. */
  readonly storageGroups?: Readonly<Record<string, readonly StorageName[]>> | undefined;
  /** Hears what the jobs of every agent say. */
  readonly listener?: EngineListener | undefined;
  /** What storages may hold, by name. */
  readonly quotaBytes?: Readonly<Partial<Record<StorageName, number>>> | undefined;
}

export type StorageName = 'near' | 'far' | 'vault';

/** A running agent of a site. */
export interface LivingAgent {
  readonly agent: Agent;
  readonly life: Life;
  readonly journal: Journal;
  /** By name; a test may put others in their places. */
  readonly storages: Map<string, Storage>;
  readonly warnings: string[];
}

/** A simulated host with one machine, some storages and a journal, on which agents live and die. */
export class Site implements AsyncDisposable {
  readonly world: SimulatedWorld;
  readonly uuid: string;
  readonly directory: string;
  readonly far: string;
  readonly options: SiteOptions;
  readonly targets: readonly string[];
  readonly vault: Vault | undefined;
  readonly #journals: Journal[] = [];
  #sequence = 0;
  #crash: Promise<void> = Promise.resolve();

  private constructor(
    world: SimulatedWorld,
    uuid: string,
    directory: string,
    far: string,
    options: SiteOptions,
    vault: Vault | undefined,
  ) {
    this.vault = vault;
    this.world = world;
    this.uuid = uuid;
    this.directory = directory;
    this.far = far;
    this.options = options;
    this.targets = options.targets ?? ['vda', 'vdb'];
  }

  /** A machine `m` that runs (or is suspended) and has written 1 to its first volume, 2 to its second, … */
  static async create(options: SiteOptions = {}): Promise<Site> {
    const directory = await mkdtemp(join(await fastDirectory(), 'stillpoint-site-'));
    const far = await mkdtemp(join(tmpdir(), 'stillpoint-far-'));
    for (const name of ['boot', 'images', 'near', 'ram', 'run', 'state', 'world'])
      await mkdir(join(directory, name));
    await mkdir(join(far, 'storage'));
    const targets = options.targets ?? ['vda', 'vdb'];
    const volumes = targets.map((target) => ({
      target,
      path: join(directory, 'images', `m-${target}.qcow2`),
      exists: true,
    }));
    for (const [index, { path }] of volumes.entries()) await copyFile(await writtenImage(index + 1), path);
    const world = await SimulatedWorld.create(join(directory, 'world'));
    const { guestAgent = true, devices = '' } = options;
    const uuid = await world.addMachine({ name: 'm', volumes, guestAgent, devices });
    await world.startMachine('m');
    const machine = world.machine('m');
    machine.autostart = options.autostart ?? false;
    if (machine.instance !== undefined) machine.instance.sequence = targets.length;
    const vault = options.storages?.includes('vault')
      ? await Vault.create(join(directory, 'vault'))
      : undefined;
    const site = new Site(world, uuid, directory, far, options, vault);
    site.#sequence = targets.length;
    if (options.suspended) await world.connect().suspend(uuid);
    return site;
  }

  /** Another machine that runs, with one volume. */
  async addMachine(name: string): Promise<string> {
    const path = this.image('vda', name);
    await copyFile(await writtenImage(1), path);
    const uuid = await this.world.addMachine({ name, volumes: [{ target: 'vda', path, exists: true }] });
    await this.world.startMachine(name);
    return uuid;
  }

  image(target: string, machine = 'm'): string {
    return join(this.directory, 'images', `${machine}-${target}.qcow2`);
  }

  get journalPath(): string {
    return join(this.directory, 'state', 'journal.sqlite');
  }

  /** In their order. */
  get storageNames(): readonly StorageName[] {
    return this.options.storages ?? ['near'];
  }

  /** Where those storages of the site are that are directories, by name. */
  get storagePaths(): Readonly<Record<string, string>> {
    const all = { near: join(this.directory, 'near'), far: join(this.far, 'storage') };
    return Object.fromEntries(
      this.storageNames.flatMap((name) => (name === 'vault' ? [] : [[name, all[name]]])),
    );
  }

  /** The storages, opened anew; `listener` hears of every change of the vault. */
  openStorages(listener?: VaultListener): Map<string, Storage> {
    return new Map(
      this.storageNames.map((name): [string, Storage] => {
        const bounds = { ...noBounds, quotaBytes: this.options.quotaBytes?.[name] ?? null };
        if (name === 'vault') return [name, this.#requireVault().storage(name, listener, bounds)];
        return [name, new DirectoryStorage({ name, path: this.storagePaths[name] ?? '', bounds })];
      }),
    );
  }

  #requireVault(): Vault {
    if (this.vault === undefined) throw new Error('the site has no vault');
    return this.vault;
  }

  get ramDisk(): string {
    return join(this.directory, 'ram');
  }

  /** Where sockets are made. */
  get runDirectory(): string {
    return join(this.directory, 'run');
  }

  /** Where a restore of files alone goes. */
  get filesDirectory(): string {
    return join(this.directory, 'files');
  }

  /** Number that the guest wrote last. */
  get lastSequence(): number {
    return this.#sequence;
  }

  /** The guest writes its next number, to its volumes in turn; only while it runs. */
  async write(): Promise<void> {
    const { status, instance } = this.world.machine('m');
    if (status.state !== 'running' || instance?.guest?.frozen === true) return;
    const next = this.#sequence + 1;
    await this.world.write('m', this.targetOf(next), next);
    this.#sequence = next;
  }

  /** The owner brings the machine, which a crash may have left otherwise, to what he wants. */
  async ownerTakesOver(): Promise<void> {
    if (this.world.machine('m').status.state === 'shut-off') await this.world.startMachine('m');
    await this.write();
    if (this.options.suspended) await this.world.connect().suspend(this.uuid);
  }

  /** After a restore the guest goes on from the number that it had at T1. */
  goOnFrom(sequence: number): void {
    this.#sequence = sequence;
  }

  targetOf(sequence: number): string {
    return this.targets[(sequence - 1) % this.targets.length] ?? '';
  }

  /** Numbers up to `last` that belong on a volume; the guest overwrites its oldest ones. */
  expected(target: string, last: number): number[] {
    const written = Array.from({ length: last }, (_, index) => index + 1);
    return written.filter((sequence) => this.targetOf(sequence) === target && sequence > last - slotCount);
  }

  /** The configuration of the host; `policy` wins over that of the site, and `others` over all else. */
  config(policy: SiteOptions['policy'] = {}, others: Readonly<Record<string, unknown>> = {}): Config {
    return configSchema.parse({
      agent: {
        ramDisk: this.options.ramDisk ? this.ramDisk : null,
        stateDir: join(this.directory, 'state'),
        socket: join(this.runDirectory, 'agent.sock'),
        ...this.options.agent,
      },
      storages: Object.fromEntries(
        this.storageNames.map((name) => [
          name,
          {
            ...(name === 'vault'
              ? this.#requireVault().settings
              : { kind: 'directory', path: this.storagePaths[name] }),
            maxParallelMachines: this.options.storageMax,
          },
        ]),
      ),
      storageGroups: Object.fromEntries(
        Object.entries(this.options.storageGroups ?? {}).map(([name, members]) => [
          name,
          { storages: members },
        ]),
      ),
      policies: {
        default: {
          freeze: this.options.freeze ?? 'auto',
          deadlines: { freezeSeconds: 1 },
          ...this.options.policy,
          ...policy,
        },
      },
      ...others,
    });
  }

  /**
   * A new agent on the same journal and world; `listener` hears every moment, `onWrite` each durable write of the
   * journal, and both may kill it. `policy` wins over that of the site.
   */
  openAgent(
    listener: (moment: string, self: LivingAgent) => Promise<void> | void = () => undefined,
    onWrite: (moment: string, self: LivingAgent) => void = () => undefined,
    policy: SiteOptions['policy'] = {},
  ): LivingAgent {
    const moments: MomentListener = (moment) => listener(moment, self);
    const life = new Life(moments);
    const journal = new MortalJournal(this.journalPath, life, (moment) => onWrite(moment, self));
    this.#journals.push(journal);
    const storages = this.openStorages((moment) => life.at(moment));
    const config = this.config(policy);
    const warnings: string[] = [];
    // As a service logs it, with all that an error carries.
    const log = createLogger({ level: 'trace', destination: { write: (line) => noteSaid('a log', line) } });
    const report = (_: string | undefined, error: unknown): void => {
      log.error({ err: error }, 'work was left undone');
      warnings.push(String(error));
    };
    const engine = new Engine({
      journal,
      onPoint: (point) => life.at(point),
      listener: {
        ...this.options.listener,
        warning: (jobId, message) => {
          log.warn(message);
          warnings.push(message);
          this.options.listener?.warning?.(jobId, message);
        },
        error: (jobId, error) => {
          log.error({ jobId, err: error }, 'job step failed');
          this.options.listener?.error?.(jobId, error);
        },
      },
    });
    const hypervisor = life.hypervisor(this.world.connect());
    const agent = new Agent({
      config,
      configPath: '/etc/stillpoint/config.yaml',
      hypervisor,
      journal,
      engine,
      storages,
      bootDirectory: join(this.directory, 'boot'),
      report,
    });
    const self: LivingAgent = { agent, life, journal, storages, warnings };
    return self;
  }

  /** Makes the owners of all jobs dead ones, as `kill -9` of their processes would; with a reboot, of another boot. */
  buryOwners(options: { readonly rebooted?: boolean } = {}): void {
    using database = openDatabase(this.journalPath);
    database.prepare('UPDATE jobs SET owner = ? WHERE owner IS NOT NULL').run(JSON.stringify(nobody));
    if (options.rebooted)
      database.exec(`UPDATE jobs SET record = json_set(record, '$.bootId', 'another-boot')`);
  }

  /** Power loss and boot: what was on the RAM disk is gone, the oneshot unit runs before libvirt. */
  async crashHost(): Promise<void> {
    this.#crash = this.#loseHost();
    await this.#crash;
  }

  async #loseHost(): Promise<void> {
    await this.world.crashHost();
    await this.#endServers();
    await rm(this.ramDisk, { recursive: true });
    await mkdir(this.ramDisk);
  }

  async bootHost(): Promise<void> {
    // The agent died first, and its test goes on: the host must be down before it comes up.
    await this.#crash;
    this.buryOwners({ rebooted: true });
    using journal = new Journal(this.journalPath);
    await repairAllOffline(journal);
    await this.world.bootHost();
  }

  /** Opens agents until one has brought everything in order without being killed. */
  async recover(
    listener?: (moment: string, self: LivingAgent) => Promise<void> | void,
  ): Promise<LivingAgent & { readonly rows: readonly JobRow[] }> {
    const living = this.openAgent(listener);
    const rows = (await living.life.live(() => living.agent.recoverOrphans())) ?? [];
    return { ...living, rows };
  }

  /** Servers of backups, which outlive their agents. */
  async #endServers(): Promise<void> {
    for (const name of await readdir(this.runDirectory, { recursive: true })) {
      if (name.includes('/') && !name.endsWith('.log')) await endServer(join(this.runDirectory, name));
    }
    for (const name of await readdir(this.runDirectory))
      await rm(join(this.runDirectory, name), { recursive: true });
  }

  /** Secrets never reach the journal. */
  async #noteJournal(): Promise<void> {
    if (this.#journals.length > 0) noteSaid('the journal', await readFile(this.journalPath, 'latin1'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#endServers();
    for (const journal of this.#journals) journal[Symbol.dispose]();
    await this.#noteJournal();
    await this.world[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true });
    await rm(this.far, { recursive: true, force: true });
  }
}

/** In memory where there is room for it: hundreds of sites are made, and each fsyncs dozens of times. */
async function fastDirectory(): Promise<string> {
  const free = await freeBytes(memoryFileSystem);
  return free > enoughBytes ? memoryFileSystem : tmpdir();
}

function openDatabase(path: string): DatabaseSync & Disposable {
  const database = new DatabaseSync(path, { timeout: 10_000 });
  return Object.assign(database, { [Symbol.dispose]: () => database.close() });
}

const writtenImages = new Map<number, Promise<string>>();
let imageDirectory: Promise<string> | undefined;

/** An image in which one number is written; made once. */
async function writtenImage(sequence: number): Promise<string> {
  imageDirectory ??= mkdtemp(join(tmpdir(), 'stillpoint-images-'));
  const directory = await imageDirectory;
  const made = writtenImages.get(sequence) ?? makeImage(join(directory, `${sequence}.qcow2`), sequence);
  writtenImages.set(sequence, made);
  return made;
}

async function makeImage(path: string, sequence: number): Promise<string> {
  await createImage(path, { format: 'qcow2', sizeBytes: 1024 * 1024 });
  await writeGuestBlock(path, 'qcow2', sequence);
  return path;
}

/** Removes what all sites of a test file share. */
export async function removeSharedImages(): Promise<void> {
  if (imageDirectory !== undefined) await rm(await imageDirectory, { recursive: true, force: true });
  imageDirectory = undefined;
  writtenImages.clear();
}
