import { copyFile, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { HostDefinition, HypervisorEvent, MachineStatus } from '../../agent/hypervisor/hypervisor.ts';
import { Interruption, refusal, unreachable } from './errors.ts';
import { lifecycleEvent, now } from './events.ts';
import type { Gate, Operation, Point } from './faults.ts';
import { Faults } from './faults.ts';
import { createImage, readGuestSequences, setHeaderBacking } from './images.ts';
import type { Registry } from './libvirtd.ts';
import { markStopped, start } from './libvirtd.ts';
import type { SimulatedMachine } from './machine.ts';
import { interrupt, requireInstance } from './machine.ts';
import type { MachineTemplate } from './machineTemplate.ts';
import { machineDefinition, templateUuid } from './machineTemplate.ts';
import { loseBitmaps } from './checkpoints.ts';
import { exclusively, flush, guestWrite, loseUnflushed } from './qemu.ts';
import { SimulatedHypervisor } from './simulatedHypervisor.ts';

const defaultImageBytes = 1024 * 1024;

/**
 * A host as the agent sees it through libvirt: machines with their QEMU processes, one libvirtd, real image
 * files. It outlives the agents that connect to it, and does what `libvirt-qemu.md` says real ones do when
 * one of agent, libvirtd, QEMU or host dies.
 *
 * Fault model: an agent dies by `connection.sever()`, libvirtd by `killLibvirtd()`, a QEMU by `killQemu()`,
 * the host by `crashHost()`; `hold()` chooses the moment. Metadata of a finished pull is lost in a crash of
 * QEMU or the host until it was flushed; every other write that was made is on the disk. Calls that libvirtd
 * refuses change nothing.
 */
export class SimulatedWorld implements AsyncDisposable {
  readonly #machines = new Map<string, SimulatedMachine>();
  readonly #connections = new Set<SimulatedHypervisor>();
  readonly #faults = new Faults();
  readonly #scratch: string;
  readonly #registry: Registry;
  #libvirtd: AbortController | undefined = new AbortController();

  /** QEMU on this host can offer any processor that has a name. */
  offersProcessors = true;
  /** What libvirt knows beside machines. */
  readonly hostDefinitions: HostDefinition[] = [];
  /** Directory for the images of machines that are added; the caller's. */
  readonly directory: string;

  private constructor(directory: string, scratch: string) {
    this.directory = directory;
    this.#scratch = scratch;
    this.#registry = {
      faults: this.#faults,
      scratch,
      emit: (event) => this.#emit(event),
      add: (definition) => this.#add(definition),
      drop: (machine) => this.#machines.delete(machine.uuid),
      find: (nameOrUuid) => this.#find(nameOrUuid),
    };
  }

  static async create(directory: string): Promise<SimulatedWorld> {
    await mkdir(directory, { recursive: true });
    return new SimulatedWorld(directory, await mkdtemp(join(directory, '.world-')));
  }

  /** libvirtd runs. */
  get isUp(): boolean {
    return this.#libvirtd !== undefined;
  }

  /** Another agent's connection to the same libvirtd. */
  connect(): SimulatedHypervisor {
    const connection = new SimulatedHypervisor({
      registry: this.#registry,
      machines: () => [...this.#machines.values()],
      definitions: this.hostDefinitions,
      offersProcessors: () => this.offersProcessors,
      perform: (operation, run) => this.#perform(operation, run),
      closed: () => this.#connections.delete(connection),
    });
    this.#connections.add(connection);
    return connection;
  }

  /** Defines a machine and creates its images; it is off. Returns its UUID. */
  async addMachine(template: MachineTemplate): Promise<string> {
    const uuid = templateUuid(template);
    for (const volume of template.volumes) {
      if (volume.exists) continue;
      const { path, format = 'qcow2', sizeBytes = defaultImageBytes, backing } = volume;
      await createImage(path, { format, sizeBytes, backing });
    }
    const xml = DomainXml.parse(machineDefinition(template, uuid));
    const machine = this.#add(xml);
    machine.persistent = xml.toString();
    return uuid;
  }

  /** A machine's inner state, to be looked at by a test; it may change it before the agent connects. */
  machine(nameOrUuid: string): SimulatedMachine {
    const machine = this.#find(nameOrUuid);
    if (machine === undefined)
      throw refusal('noDomain', `no domain with matching name or uuid '${nameOrUuid}'`);
    return machine;
  }

  /** The owner starts the machine. */
  async startMachine(nameOrUuid: string): Promise<void> {
    await start(this.#registry, this.machine(nameOrUuid), false);
  }

  /** The guest writes number `sequence` to a volume, flushes, and keeps the number in its memory. */
  async write(nameOrUuid: string, target: string, sequence: number): Promise<void> {
    await guestWrite(this.#registry, this.machine(nameOrUuid), target, sequence);
  }

  /** The number in the memory of a guest. */
  memorySequence(nameOrUuid: string): number {
    return requireInstance(this.machine(nameOrUuid)).sequence;
  }

  /** What the guest of a machine that is on would read: through the chain that its QEMU has open. */
  async readVolume(nameOrUuid: string, target: string): Promise<number[]> {
    const machine = this.machine(nameOrUuid);
    const instance = requireInstance(machine);
    const { path, format } = DomainXml.parse(instance.definition).volume(target);
    if (path === undefined) throw new Error(`volume ${target} has no image`);
    if (format !== 'qcow2') return readGuestSequences(path, 'raw');
    if (instance.chains.get(target)?.length !== 0) return readGuestSequences(path);
    // A chain that is cut although the header goes on.
    const alone = join(this.#scratch, 'alone');
    await copyFile(path, alone);
    await setHeaderBacking(alone, undefined);
    return readGuestSequences(alone);
  }

  /** The guest shuts itself down. */
  async shutDownGuest(nameOrUuid: string): Promise<void> {
    const machine = this.machine(nameOrUuid);
    const instance = requireInstance(machine);
    await interrupt(machine, new Interruption('qemu'));
    await flush(instance);
    this.#emit(lifecycleEvent(machine.uuid, 'shutdownGuest'));
    markStopped(this.#registry, machine, 'shutdown', 'stoppedShutdown');
  }

  /** The file system of a volume's image is full: a pull fails, a write of the guest pauses it. */
  fillTarget(nameOrUuid: string, target: string): void {
    requireInstance(this.machine(nameOrUuid)).full.add(target);
  }

  freeTarget(nameOrUuid: string, target: string): void {
    requireInstance(this.machine(nameOrUuid)).full.delete(target);
  }

  hold(point: Point): Gate {
    return this.#faults.hold(point);
  }

  /** `after`: the operation is done and only its answer is lost. */
  failNext(operation: Operation, error: Error, moment: 'before' | 'after' = 'before'): void {
    this.#faults.failNext(operation, error, moment);
  }

  /** Every call of this operation takes that much longer; 0 ends it. */
  delay(operation: Operation, delayMs: number): void {
    this.#faults.delay(operation, delayMs);
  }

  /** `kill -9` of a machine's QEMU. */
  async killQemu(nameOrUuid: string): Promise<void> {
    const machine = this.machine(nameOrUuid);
    const instance = requireInstance(machine);
    const starting = machine.operation?.name === 'restore' || machine.operation?.name === 'start';
    // First: once what it was doing has ended, nobody may find it running any more.
    await exclusively(instance, () => loseBitmaps(instance));
    await interrupt(machine, new Interruption('qemu'));
    await loseUnflushed(instance);
    if (starting || machine.instance === undefined) return;
    if (this.#libvirtd === undefined) {
      machine.instance = undefined;
      machine.afterRestart = { state: 'shut-off', reason: 'crashed' };
    } else {
      markStopped(this.#registry, machine, 'crashed', 'stoppedCrashed');
    }
  }

  /** `kill -9` of libvirtd: calls fail, events are lost, QEMUs and their block jobs go on. */
  async killLibvirtd(): Promise<void> {
    this.#libvirtd?.abort();
    this.#libvirtd = undefined;
    for (const machine of this.#machines.values()) {
      machine.operation?.controller.abort(new Interruption('libvirtd'));
      await machine.operation?.done;
      // Seen on libvirt 9.0: the next one drops a job that QEMU does not know, and goes on showing the old chain.
      for (const [target, job] of machine.instance?.blockJobs ?? [])
        if (job.isDismissed === true) machine.instance?.blockJobs.delete(target);
    }
  }

  /** The next libvirtd: it has forgotten why a machine is off, and resumes one whose save was cut off. */
  startLibvirtd(): void {
    this.#libvirtd = new AbortController();
    for (const machine of this.#machines.values()) {
      machine.status = statusAfterRestart(machine);
      machine.afterRestart = undefined;
      if (machine.instance === undefined && machine.persistent === undefined)
        this.#machines.delete(machine.uuid);
    }
    this.#emit({ kind: 'reconnected', ...now() });
  }

  async restartLibvirtd(): Promise<void> {
    await this.killLibvirtd();
    this.startLibvirtd();
  }

  /** The host loses power: agents, libvirtd, every QEMU, and what was not flushed. */
  async crashHost(): Promise<void> {
    for (const connection of this.#connections) connection.sever();
    this.#connections.clear();
    this.#libvirtd?.abort();
    this.#libvirtd = undefined;
    for (const machine of this.#machines.values()) {
      const { instance } = machine;
      await interrupt(machine, new Interruption('host'));
      if (instance !== undefined) {
        await loseUnflushed(instance);
        await loseBitmaps(instance);
      }
      machine.instance = undefined;
      machine.afterRestart = { state: 'shut-off', reason: 'unknown' };
    }
  }

  /** The host comes up: libvirtd starts what has autostart, cold. A machine that cannot start stays off. */
  async bootHost(): Promise<void> {
    this.startLibvirtd();
    for (const machine of this.#machines.values()) {
      if (!machine.autostart) continue;
      await start(this.#registry, machine, false).catch((error: unknown) => {
        if (machine.status.reason !== 'failed') throw error;
      });
    }
  }

  /** Ends everything that still goes on and removes the world's own scratch files; images are the caller's. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const connection of this.#connections) connection.sever();
    for (const machine of this.#machines.values()) {
      await interrupt(machine, new Interruption('host'));
      await machine.instance?.work;
    }
    await rm(this.#scratch, { recursive: true, force: true });
  }

  async #perform<T>(operation: Operation, run: () => Promise<T> | T): Promise<T> {
    await this.#faults.applyDelay(operation);
    const libvirtd = this.#libvirtd?.signal;
    if (libvirtd === undefined) throw unreachable();
    this.#faults.throwFailure(operation, 'before');
    const lost = Promise.withResolvers<never>();
    const fail = (): void => lost.reject(unreachable());
    libvirtd.addEventListener('abort', fail, { once: true });
    try {
      const result = await Promise.race([run(), lost.promise]);
      this.#faults.throwFailure(operation, 'after');
      return result;
    } finally {
      libvirtd.removeEventListener('abort', fail);
    }
  }

  #emit(event: HypervisorEvent): void {
    if (this.#libvirtd === undefined) return;
    for (const connection of this.#connections) connection.deliver(event);
  }

  #find(nameOrUuid: string): SimulatedMachine | undefined {
    const byUuid = this.#machines.get(nameOrUuid.toLowerCase());
    return byUuid ?? [...this.#machines.values()].find((machine) => machine.name === nameOrUuid);
  }

  #add(xml: DomainXml): SimulatedMachine {
    const { name, uuid } = xml;
    if (this.#find(name) !== undefined) {
      throw refusal('operationFailed', `domain '${name}' already exists with uuid ${this.#find(name)?.uuid}`);
    }
    const machine: SimulatedMachine = {
      uuid,
      name,
      persistent: undefined,
      instance: undefined,
      status: { state: 'shut-off', reason: 'unknown' },
      autostart: false,
      hasManagedSave: false,
      snapshots: [],
      checkpoints: [],
      checkpointTargets: new Map(),
      operation: undefined,
      afterRestart: undefined,
    };
    this.#machines.set(uuid, machine);
    return machine;
  }
}

function statusAfterRestart(machine: SimulatedMachine): MachineStatus {
  if (machine.afterRestart !== undefined) return machine.afterRestart;
  return machine.instance === undefined ? { state: 'shut-off', reason: 'unknown' } : machine.status;
}
