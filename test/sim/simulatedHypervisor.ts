import { writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';

import type { Checkpoint, PullBackup } from '../../agent/hypervisor/backupXml.ts';
import type { ProcessUser } from '../../agent/hypervisor/capabilitiesXml.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { HypervisorError } from '../../agent/hypervisor/errors.ts';
import type { ProcessorRequirement } from '../../agent/hypervisor/processorXml.ts';
import type {
  BlockJob,
  CommitOptions,
  DefinitionKind,
  HostDefinition,
  HostInfo,
  Hypervisor,
  HypervisorEvent,
  HypervisorListener,
  LiveSnapshotOptions,
  MachineJob,
  MachineStatus,
  MachineSummary,
  PullOptions,
  RestoreStateOptions,
  SaveOptions,
} from '../../agent/hypervisor/hypervisor.ts';
import { Interruption, refusal, unreachable } from './errors.ts';
import { lifecycleEvent } from './events.ts';
import type { Operation } from './faults.ts';
import { addCheckpoint, deleteCheckpoint, requireCheckpointPossible } from './checkpoints.ts';
import { beginBackup, removeTraces } from './pullBackup.ts';
import type { Registry } from './libvirtd.ts';
import {
  locked,
  markStopped,
  restore,
  save,
  start,
  startCpus,
  startTransient,
  stopCpus,
} from './libvirtd.ts';
import type { SimulatedGuest, SimulatedMachine } from './machine.ts';
import {
  interrupt,
  parseDefinition,
  renderDefinition,
  requireBlockJob,
  requireIdle,
  requireInstance,
  requireNothingKept,
  requireUnlocked,
  requireVolume,
} from './machine.ts';
import { startCommit } from './commit.ts';
import { snapshotLive } from './liveSnapshot.ts';
import { flush, startPull } from './qemu.ts';
import { readSaveImage, replaceDefinition } from './saveImage.ts';

/** What a connection needs of its world. */
export interface Host {
  readonly registry: Registry;
  machines(): SimulatedMachine[];
  readonly offersProcessors: () => boolean;
  readonly definitions: readonly HostDefinition[];
  perform<T>(operation: Operation, run: () => Promise<T> | T): Promise<T>;
  closed(): void;
}

/** One agent's connection to the simulated libvirtd of a `SimulatedWorld`. */
export class SimulatedHypervisor implements Hypervisor {
  readonly #host: Host;
  readonly #listeners = new Set<HypervisorListener>();
  readonly #deadlines = new Set<NodeJS.Timeout>();
  #state: 'open' | 'closed' | 'severed' = 'open';

  constructor(host: Host) {
    this.#host = host;
  }

  /** The agent dies: its calls, also those in flight, never return, and it hears nothing any more. */
  sever(): void {
    this.#state = 'severed';
    this.#listeners.clear();
    for (const timer of this.#deadlines) clearTimeout(timer);
  }

  /** For the world. */
  deliver(event: HypervisorEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  warmUp(): Promise<Disposable> {
    return this.#call('warmUp', () => ({ [Symbol.dispose]: () => undefined }));
  }

  stayReady(): Promise<Disposable> {
    return this.#call('stayReady', () => ({ [Symbol.dispose]: () => undefined }));
  }

  hostInfo(): Promise<HostInfo> {
    return this.#call('hostInfo', () => ({
      hostName: hostname(),
      libvirtVersion: '9.0.0',
      qemuVersion: '7.2.22',
      uri: 'simulated:///system',
    }));
  }

  defaultUser(): Promise<ProcessUser> {
    return this.#call('defaultUser', () => ({
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
    }));
  }

  offersProcessor({ cpu }: ProcessorRequirement): Promise<boolean> {
    return this.#call('offersProcessor', () => {
      if (cpu.includes('no-such-model')) throw refusal('internal', 'Unknown CPU model no-such-model');
      return !cpu.includes('athlon') && this.#host.offersProcessors();
    });
  }

  machines(): Promise<readonly MachineSummary[]> {
    return this.#call('machines', () => this.#host.machines().map(summary));
  }

  hostDefinitions(): Promise<readonly HostDefinition[]> {
    return this.#call('hostDefinitions', () => this.#host.definitions);
  }

  findMachine(nameOrUuid: string): Promise<MachineSummary> {
    return this.#call('findMachine', () => summary(this.#machine(nameOrUuid, 'any')));
  }

  machine(uuid: string): Promise<MachineSummary> {
    return this.#on('machine', uuid, summary);
  }

  status(uuid: string): Promise<MachineStatus> {
    return this.#on('status', uuid, (machine) => machine.status);
  }

  definition(uuid: string, kind: DefinitionKind): Promise<string> {
    return this.#on('definition', uuid, (machine) => renderDefinition(machine, kind));
  }

  setAutostart(uuid: string, autostart: boolean): Promise<void> {
    return this.#on('setAutostart', uuid, (machine) => {
      if (machine.persistent === undefined) {
        throw refusal('operationInvalid', 'cannot set autostart for transient domain');
      }
      machine.autostart = autostart;
    });
  }

  define(definition: string): Promise<void> {
    return this.#call('define', () => {
      const { registry } = this.#host;
      const xml = parseDefinition(definition);
      const known = registry.find(xml.uuid);
      if (known !== undefined && known.name !== xml.name) {
        throw refusal('operationFailed', `domain '${known.name}' is already defined with uuid ${known.uuid}`);
      }
      const machine = known ?? registry.add(xml);
      const isNew = machine.persistent === undefined;
      machine.persistent = xml.toString();
      registry.emit(lifecycleEvent(machine.uuid, isNew ? 'definedAdded' : 'definedUpdated'));
    });
  }

  undefine(uuid: string): Promise<void> {
    return this.#on('undefine', uuid, (machine) => {
      if (machine.persistent === undefined)
        throw refusal('operationInvalid', 'cannot undefine transient domain');
      if (machine.instance === undefined) requireNothingKept(machine);
      machine.persistent = undefined;
      machine.autostart = false;
      this.#host.registry.emit(lifecycleEvent(machine.uuid, 'undefinedRemoved'));
      if (machine.instance === undefined) this.#host.registry.drop(machine);
    });
  }

  start(uuid: string, options: { readonly paused?: boolean | undefined } = {}): Promise<void> {
    return this.#on('start', uuid, (machine) => start(this.#host.registry, machine, options.paused ?? false));
  }

  startTransient(definition: string): Promise<void> {
    return this.#call('startTransient', () => startTransient(this.#host.registry, definition));
  }

  screenshot(uuid: string, file: string): Promise<string> {
    return this.#on('screenshot', uuid, async (machine) => {
      const { definition, sequence } = requireInstance(machine);
      if (!DomainXml.parse(definition).hasScreen) throw refusal('invalidArgument', 'no screen');
      await writeFile(file, `P6\n1 1\n255\n${String.fromCharCode(sequence % 128, 0, 0)}`, { flag: 'wx' });
      return 'image/x-portable-pixmap';
    });
  }

  suspend(uuid: string): Promise<void> {
    return this.#on('suspend', uuid, async (machine) => {
      requireInstance(machine);
      requireUnlocked(machine);
      if (machine.status.state === 'paused') return;
      await stopCpus(this.#host.registry, machine, { state: 'paused', reason: 'user' });
    });
  }

  resume(uuid: string): Promise<void> {
    return this.#on('resume', uuid, (machine) => {
      requireInstance(machine);
      requireUnlocked(machine);
      if (machine.status.state === 'running') throw refusal('operationInvalid', 'domain is already running');
      startCpus(this.#host.registry, machine, 'unpaused');
    });
  }

  powerOff(uuid: string): Promise<void> {
    return this.#on('powerOff', uuid, async (machine) => {
      const instance = requireInstance(machine);
      const { registry } = this.#host;
      await interrupt(machine, new Interruption('qemu'));
      await instance.work;
      await flush(instance);
      if (machine.instance === undefined) return;
      registry.emit(lifecycleEvent(uuid, 'shutdownHost'));
      markStopped(registry, machine, 'destroyed', 'stoppedDestroyed');
    });
  }

  save(uuid: string, options: SaveOptions): Promise<void> {
    const { file, definition } = options;
    return this.#writingMemory('save', uuid, options, (machine) =>
      save(this.#host.registry, machine, file, definition),
    );
  }

  setStateDefinition(file: string, definition: string): Promise<void> {
    return this.#call('setStateDefinition', () =>
      replaceDefinition(file, parseDefinition(definition).toString()),
    );
  }

  snapshotLive(uuid: string, options: LiveSnapshotOptions): Promise<void> {
    return this.#writingMemory('snapshotLive', uuid, options, (machine) =>
      snapshotLive(this.#host.registry, machine, options),
    );
  }

  setMaxDowntime(uuid: string): Promise<void> {
    return this.#on('setMaxDowntime', uuid, (machine) => {
      requireInstance(machine);
    });
  }

  restoreState(options: RestoreStateOptions): Promise<void> {
    const restored = this.#call('restoreState', () => restore(this.#host.registry, options));
    return this.#withDeadline(restored, 'restoreState', options.deadlineMs);
  }

  stateDefinition(file: string): Promise<string> {
    return this.#call('stateDefinition', async () => (await readSaveImage(file)).definition);
  }

  job(uuid: string): Promise<MachineJob> {
    return this.#on(
      'job',
      uuid,
      ({ operation, instance }) =>
        operation?.job ?? {
          kind: instance?.backup === undefined ? 'none' : 'unbounded',
          processedBytes: 0,
          totalBytes: 0,
        },
    );
  }

  abortJob(uuid: string): Promise<void> {
    return this.#on('abortJob', uuid, async (machine) => {
      requireInstance(machine);
      const { operation } = machine;
      if (operation?.name !== 'save' && operation?.name !== 'snapshot')
        throw refusal('operationInvalid', 'no job is active on the domain');
      operation.controller.abort(new Interruption('abort'));
      await operation.done;
    });
  }

  processUser(uuid: string): Promise<{ readonly uid: number; readonly gid: number }> {
    return this.#on('processUser', uuid, (machine) => {
      requireInstance(machine);
      return { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
    });
  }

  beginBackup(uuid: string, backup: PullBackup, checkpoint?: Checkpoint): Promise<void> {
    return this.#on('beginBackup', uuid, async (machine) => {
      const instance = requireInstance(machine);
      requireIdle(machine);
      if (instance.blockJobs.size > 0) throw refusal('operationInvalid', 'disk has a blockjob assigned');
      for (const { since } of backup.volumes)
        if (since !== undefined && !machine.checkpoints.includes(since))
          throw refusal('noCheckpoint', `Checkpoint '${since}' for incremental backup not found`);
      if (checkpoint !== undefined) requireCheckpointPossible(machine, checkpoint);
      await locked(machine, 'backup', async () => {
        instance.backup = await beginBackup(instance, backup);
        if (checkpoint !== undefined) await addCheckpoint(machine, checkpoint);
      });
    });
  }

  createCheckpoint(uuid: string, checkpoint: Checkpoint): Promise<void> {
    return this.#on('createCheckpoint', uuid, async (machine) => {
      if (machine.instance === undefined)
        throw refusal('operationUnsupported', 'cannot create checkpoint for inactive domain');
      requireIdle(machine);
      requireCheckpointPossible(machine, checkpoint);
      await addCheckpoint(machine, checkpoint);
    });
  }

  currentBackup(uuid: string): Promise<PullBackup | null> {
    return this.#on('currentBackup', uuid, ({ instance }) => instance?.backup?.backup ?? null);
  }

  endBackup(uuid: string, socketPath: string): Promise<void> {
    return this.#on('endBackup', uuid, async ({ instance }) => {
      const running = instance?.backup;
      if (instance === undefined || running?.backup.socketPath !== socketPath) return;
      await running.stop();
      instance.backup = undefined;
      await removeTraces(running.backup);
    });
  }

  askGuest(uuid: string): Promise<void> {
    return this.#on('askGuest', uuid, (machine) => {
      if (requireGuest(machine).frozen) throw refusal('internal', 'the command has been disabled: frozen');
    });
  }

  freezeGuest(uuid: string): Promise<number> {
    return this.#on('freezeGuest', uuid, (machine) => {
      const { guest } = requireInstance(machine);
      if (guest?.agent === 'silent') guest.frozen = true;
      requireGuest(machine).frozen = true;
      return 1;
    });
  }

  thawGuest(uuid: string): Promise<number> {
    return this.#on('thawGuest', uuid, (machine) => {
      const guest = requireGuest(machine);
      const count = guest.frozen ? 1 : 0;
      guest.frozen = false;
      return count;
    });
  }

  pull(uuid: string, options: PullOptions): Promise<void> {
    return this.#on('pull', uuid, (machine) => {
      requireInstance(machine);
      requireIdle(machine);
      startPull(this.#host.registry, machine, options);
    });
  }

  commit(uuid: string, options: CommitOptions): Promise<void> {
    return this.#on('commit', uuid, (machine) => {
      requireInstance(machine);
      requireIdle(machine);
      startCommit(this.#host.registry, machine, options);
    });
  }

  pivot(uuid: string, target: string): Promise<void> {
    return this.#on('pivot', uuid, async (machine) => {
      const { finish } = requireBlockJob(machine, target);
      if (finish === undefined)
        throw refusal('blockCopyActive', `block job on disk '${target}' is not ready for pivot yet`);
      await finish();
    });
  }

  blockJob(uuid: string, target: string): Promise<BlockJob | null> {
    return this.#on('blockJob', uuid, (machine) => {
      const { blockJobs } = requireInstance(machine);
      requireVolume(machine, target);
      return blockJobs.get(target)?.progress ?? null;
    });
  }

  setBlockJobBandwidth(uuid: string, target: string, bytesPerSecond: number): Promise<void> {
    return this.#on('setBlockJobBandwidth', uuid, (machine) => {
      const pull = requireBlockJob(machine, target);
      pull.progress = { ...pull.progress, bandwidthBytesPerSecond: bytesPerSecond };
    });
  }

  abortBlockJob(uuid: string, target: string): Promise<void> {
    return this.#on('abortBlockJob', uuid, async (machine) => {
      const pull = requireBlockJob(machine, target);
      // Ready or not.
      pull.controller.abort(new Interruption('abort'));
      await pull.done;
    });
  }

  snapshotNames(uuid: string): Promise<readonly string[]> {
    return this.#on('snapshotNames', uuid, (machine) => [...machine.snapshots]);
  }

  volumePath(pool: string, volume: string): Promise<string> {
    return this.#call('volumePath', () => {
      throw refusal('operationFailed', `Storage volume not found: no volume ${volume} in pool '${pool}'`);
    });
  }

  volumeSizeBytes(uuid: string, target: string): Promise<number> {
    return this.#on('volumeSizeBytes', uuid, async (machine) => {
      const { path, format } = DomainXml.parse(requireInstance(machine).definition).volume(target);
      if (path === undefined) return 1024 * 1024;
      return (await readImageInfo(path, format === 'raw' ? 'raw' : 'qcow2', { inUse: true }))
        .virtualSizeBytes;
    });
  }

  snapshotDefinitions(
    uuid: string,
  ): Promise<readonly { readonly name: string; readonly definition: string }[]> {
    return this.#on('snapshotDefinitions', uuid, ({ snapshots }) =>
      snapshots.map((name) => ({
        name,
        definition: `<domainsnapshot><name>${name}</name></domainsnapshot>`,
      })),
    );
  }

  checkpointNames(uuid: string): Promise<readonly string[]> {
    return this.#on('checkpointNames', uuid, (machine) => [...machine.checkpoints]);
  }

  checkpoints(uuid: string): Promise<readonly Checkpoint[]> {
    return this.#on('checkpoints', uuid, ({ checkpoints, checkpointTargets }) =>
      checkpoints.map((name) => ({ name, targets: checkpointTargets.get(name) ?? [] })),
    );
  }

  deleteCheckpoint(uuid: string, name: string, what: 'all' | 'metadata'): Promise<void> {
    return this.#on('deleteCheckpoint', uuid, (machine) => deleteCheckpoint(machine, name, what));
  }

  flushVolume(uuid: string, target: string): Promise<void> {
    return this.#on('flushVolume', uuid, async (machine) => {
      const instance = requireInstance(machine);
      requireVolume(machine, target);
      await flush(instance, target);
    });
  }

  subscribe(listener: HypervisorListener): Promise<() => Promise<void>> {
    return this.#call('subscribe', () => {
      this.#listeners.add(listener);
      return async () => {
        this.#listeners.delete(listener);
      };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === 'severed') return;
    this.#state = 'closed';
    this.#listeners.clear();
    this.#host.closed();
  }

  #machine(identity: string, by: 'uuid' | 'any'): SimulatedMachine {
    const machine = this.#host.registry.find(identity);
    if (machine === undefined || (by === 'uuid' && machine.uuid !== identity.toLowerCase())) {
      throw refusal('noDomain', `no domain with matching name or uuid '${identity}'`);
    }
    return machine;
  }

  #on<T>(operation: Operation, uuid: string, run: (machine: SimulatedMachine) => Promise<T> | T): Promise<T> {
    return this.#call(operation, () => run(this.#machine(uuid, 'uuid')));
  }

  async #call<T>(operation: Operation, run: () => Promise<T> | T): Promise<T> {
    if (this.#state === 'closed') throw unreachable();
    await this.#alive();
    try {
      return await this.#host.perform(operation, run);
    } finally {
      await this.#alive();
    }
  }

  /** What writes memory into a file: it can be aborted, and has a deadline. */
  #writingMemory(
    operation: 'save' | 'snapshotLive',
    uuid: string,
    { deadlineMs, signal }: Pick<SaveOptions, 'deadlineMs' | 'signal'>,
    write: (machine: SimulatedMachine) => Promise<void>,
  ): Promise<void> {
    const run = async (machine: SimulatedMachine): Promise<void> => {
      const abort = (): void => machine.operation?.controller.abort(new Interruption('abort'));
      signal?.addEventListener('abort', abort, { once: true });
      try {
        if (signal?.aborted) throw refusal('aborted', `the ${operation} was cancelled before it began`);
        await write(machine);
      } finally {
        signal?.removeEventListener('abort', abort);
      }
    };
    return this.#withDeadline(this.#on(operation, uuid, run), operation, deadlineMs);
  }

  async #withDeadline<T>(pending: Promise<T>, what: string, deadlineMs: number | undefined): Promise<T> {
    if (deadlineMs === undefined) return pending;
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => {
      late.reject(new HypervisorError('DEADLINE_EXCEEDED', `${what} did not end within ${deadlineMs} ms`));
    }, deadlineMs);
    this.#deadlines.add(timer);
    try {
      return await Promise.race([pending, late.promise]);
    } finally {
      clearTimeout(timer);
      this.#deadlines.delete(timer);
    }
  }

  /** Nothing comes back to an agent that has died meanwhile; what it started goes on. */
  async #alive(): Promise<void> {
    if (this.#state === 'severed') await new Promise<never>(() => undefined);
  }
}

/** The guest of a machine whose agent answers. */
function requireGuest(machine: SimulatedMachine): SimulatedGuest {
  const { guest } = requireInstance(machine);
  if (machine.status.state !== 'running') throw refusal('operationInvalid', 'domain is not running');
  if (guest === undefined) throw refusal('argumentUnsupported', 'QEMU guest agent is not configured');
  if (guest.agent === 'answers') return guest;
  throw refusal('agentUnresponsive', 'Guest agent is not responding');
}

function summary(machine: SimulatedMachine): MachineSummary {
  const { uuid, name, status, autostart, hasManagedSave } = machine;
  return { uuid, name, status, persistent: machine.persistent !== undefined, autostart, hasManagedSave };
}
