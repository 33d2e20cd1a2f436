import { stat } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { isErrno } from '../../../common/errors.ts';
import {
  type Checkpoint,
  formatBackupXml,
  formatCheckpointXml,
  parseBackupXml,
  parseCheckpointXml,
  type PullBackup,
} from '../backupXml.ts';
import { defaultUserOf, type ProcessUser } from '../capabilitiesXml.ts';
import type { ProcessorRequirement } from '../processorXml.ts';
import { DomainXml, DomainXmlError } from '../domainXml.ts';
import { HypervisorError } from '../errors.ts';
import { formatSnapshotXml } from '../snapshotXml.ts';
import type {
  BlockJob,
  CommitOptions,
  DefinitionKind,
  HostDefinition,
  HostInfo,
  Hypervisor,
  HypervisorListener,
  LiveSnapshotOptions,
  MachineJob,
  MachineStatus,
  MachineSummary,
  PullOptions,
  RestoreStateOptions,
  SaveOptions,
} from '../hypervisor.ts';
import type { OperationArguments, OperationResult } from './channel.ts';
import { defaultDeadlines } from './deadlines.ts';
import type { Deadlines } from './deadlines.ts';
import { EventFeed } from './eventFeed.ts';
import type { OperationName } from './messages.ts';
import { ChannelPool } from './pool.ts';
import { keepConnected } from './readiness.ts';

export interface LibvirtHypervisorOptions {
  /** `qemu:///system`, or `qemu+unix:///system?socket=…`. */
  readonly uri: string;
  readonly deadlines?: Partial<Deadlines> | undefined;
  /** After how long without work a child process ends; 10 s. */
  readonly idleMs?: number | undefined;
}

const idleMsDefault = 10_000;
const abortRetryMs = 20;

/** libvirt serves 5 requests of one connection at once, and a host does only so much at a time. */
const longCallsMax = 4;
/** A second child answers questions while the first is kept waiting inside libvirtd. */
const queryCallsMax = 2;
const queryPatienceMs = 250;

/**
 * Questions that the child for events may answer: those of an idle service, which libvirt answers without waiting for what
 * is done to a machine. Any other could keep an event from being told for as long as a machine is locked.
 */
const quickQuestions: ReadonlySet<OperationName> = new Set<OperationName>([
  'hostInfo',
  'machines',
  'findMachine',
  'machine',
]);

/**
 * libvirt, called through koffi in child processes, so that a libvirtd that hangs can never hold up the
 * caller: questions in one, calls that can take long in up to four, events in one while anybody listens.
 * Nothing is connected before the first call, and a connection that was lost is made again by the next.
 */
export class LibvirtHypervisor implements Hypervisor {
  readonly #deadlines: Deadlines;
  readonly #queries: ChannelPool;
  readonly #changes: ChannelPool;
  readonly #feed: EventFeed;

  constructor(options: LibvirtHypervisorOptions) {
    const { uri, deadlines, idleMs = idleMsDefault } = options;
    this.#deadlines = { ...defaultDeadlines, ...deadlines };
    this.#feed = new EventFeed(uri, this.#deadlines.queryMs);
    this.#queries = new ChannelPool({
      uri,
      idleMs,
      limit: queryCallsMax,
      growAfterMs: queryPatienceMs,
      shared: () => this.#feed.shared,
    });
    this.#changes = new ChannelPool({ uri, idleMs, limit: longCallsMax, growAfterMs: 0 });
  }

  /**
   * Starts and connects the children that questions and long calls need, and keeps them until the returned
   * object is disposed: inside a pause nothing is started.
   */
  async warmUp(): Promise<Disposable> {
    const holds = [this.#queries.hold(), this.#changes.hold()];
    const release = (): void => {
      for (const hold of holds) hold[Symbol.dispose]();
    };
    try {
      await Promise.all([
        this.#queries.request('connect', [], this.#deadlines.queryMs),
        this.#change('connect'),
      ]);
    } catch (error) {
      release();
      throw error;
    }
    return { [Symbol.dispose]: release };
  }

  /**
   * One child for questions is started now, stays, and is replaced when it is lost. While somebody listens to events, that
   * is the child that delivers them: outside a pause (see `warmUp`) an event may come after the answer to a question.
   */
  async stayReady(): Promise<Disposable> {
    const ending = new AbortController();
    const kept = this.#queries.keepLast();
    void keepConnected(this.#queries, this.#deadlines.queryMs, ending.signal);
    return {
      [Symbol.dispose]: () => {
        ending.abort();
        kept[Symbol.dispose]();
      },
    };
  }

  /** The child processes that there are at this moment. */
  get pids(): readonly number[] {
    return [...this.#feed.pids, ...this.#queries.pids, ...this.#changes.pids];
  }

  hostInfo(): Promise<HostInfo> {
    return this.#query('hostInfo');
  }

  async defaultUser(): Promise<ProcessUser> {
    const user = defaultUserOf(await this.#query('capabilities'));
    if (user !== undefined) return user;
    throw new HypervisorError(
      'OPERATION_UNSUPPORTED',
      'libvirt does not say which user runs machines (no secmodel dac in its capabilities)',
    );
  }

  offersProcessor(processor: ProcessorRequirement): Promise<boolean> {
    return this.#query('offersProcessor', processor);
  }

  machines(): Promise<readonly MachineSummary[]> {
    return this.#query('machines');
  }

  hostDefinitions(): Promise<readonly HostDefinition[]> {
    return this.#query('hostDefinitions');
  }

  findMachine(nameOrUuid: string): Promise<MachineSummary> {
    return this.#query('findMachine', nameOrUuid);
  }

  machine(uuid: string): Promise<MachineSummary> {
    return this.#query('machine', uuid);
  }

  status(uuid: string): Promise<MachineStatus> {
    return this.#query('status', uuid);
  }

  definition(uuid: string, kind: DefinitionKind): Promise<string> {
    return this.#query('definition', uuid, kind);
  }

  setAutostart(uuid: string, autostart: boolean): Promise<void> {
    return this.#change('setAutostart', uuid, autostart);
  }

  define(definition: string): Promise<void> {
    return this.#change('define', definition);
  }

  undefine(uuid: string): Promise<void> {
    return this.#change('undefine', uuid);
  }

  start(uuid: string, options: { readonly paused?: boolean | undefined } = {}): Promise<void> {
    return this.#change('start', uuid, options.paused ?? false);
  }

  startTransient(definition: string): Promise<void> {
    return this.#change('startTransient', definition);
  }

  screenshot(uuid: string, file: string): Promise<string> {
    return this.#change('screenshot', uuid, file);
  }

  suspend(uuid: string): Promise<void> {
    return this.#change('suspend', uuid);
  }

  resume(uuid: string): Promise<void> {
    return this.#change('resume', uuid);
  }

  powerOff(uuid: string): Promise<void> {
    return this.#changes.request('powerOff', [uuid], this.#deadlines.powerOffMs);
  }

  /** An abort rejects with OPERATION_ABORTED, and the machine runs on. */
  async save(uuid: string, options: SaveOptions): Promise<void> {
    const { file, definition, deadlineMs = this.#deadlines.stateMs, signal } = options;
    await this.#writingMemory(uuid, file, signal, () =>
      this.#changes.request('save', [uuid, file, definition], deadlineMs),
    );
  }

  setStateDefinition(file: string, definition: string): Promise<void> {
    return this.#change('setStateDefinition', file, definition);
  }

  async snapshotLive(uuid: string, options: LiveSnapshotOptions): Promise<void> {
    const { memoryFile, overlays, deadlineMs = this.#deadlines.stateMs, signal } = options;
    const { volumes } = DomainXml.parse(await this.definition(uuid, 'live'));
    const named = new Set(overlays.map(({ target }) => target));
    const leftOut = volumes.map(({ target }) => target).filter((target) => !named.has(target));
    const snapshotXml = formatSnapshotXml(options, leftOut);
    await this.#writingMemory(uuid, memoryFile, signal, () =>
      this.#changes.request('snapshotLive', [uuid, memoryFile, snapshotXml], deadlineMs),
    );
  }

  setMaxDowntime(uuid: string, downtimeMs: number): Promise<void> {
    return this.#quickChange('setMaxDowntime', uuid, downtimeMs);
  }

  restoreState(options: RestoreStateOptions): Promise<void> {
    const { file, definition = null, paused, deadlineMs = this.#deadlines.stateMs } = options;
    return this.#changes.request('restoreState', [file, definition, paused], deadlineMs);
  }

  stateDefinition(file: string): Promise<string> {
    return this.#query('stateDefinition', file);
  }

  job(uuid: string): Promise<MachineJob> {
    return this.#query('job', uuid);
  }

  abortJob(uuid: string): Promise<void> {
    return this.#quickChange('abortJob', uuid);
  }

  async processUser(uuid: string): Promise<{ readonly uid: number; readonly gid: number }> {
    const definition = DomainXml.parse(await this.definition(uuid, 'live'));
    if (definition.runId === undefined)
      throw new HypervisorError('MACHINE_STATE_INVALID', `${definition.name} does not run`);
    const user = definition.processUser;
    if (user !== undefined) return user;
    throw new HypervisorError(
      'OPERATION_UNSUPPORTED',
      `libvirt does not say which user runs ${definition.name} (no seclabel of model dac)`,
    );
  }

  async beginBackup(uuid: string, backup: PullBackup, checkpoint?: Checkpoint): Promise<void> {
    const targets = await this.#targets(uuid);
    const leftOut = without(
      targets,
      backup.volumes.map(({ target }) => target),
    );
    const checkpointXml =
      checkpoint === undefined ? null : formatCheckpointXml(checkpoint, without(targets, checkpoint.targets));
    await this.#change('beginBackup', uuid, formatBackupXml(backup, leftOut), checkpointXml);
  }

  async createCheckpoint(uuid: string, checkpoint: Checkpoint): Promise<void> {
    const leftOut = without(await this.#targets(uuid), checkpoint.targets);
    await this.#change('createCheckpoint', uuid, formatCheckpointXml(checkpoint, leftOut));
  }

  async #targets(uuid: string): Promise<readonly string[]> {
    const { volumes } = DomainXml.parse(await this.definition(uuid, 'live'));
    return volumes.map(({ target }) => target);
  }

  async currentBackup(uuid: string): Promise<PullBackup | null> {
    const definition = await this.#query('backupDefinition', uuid);
    return definition === null ? null : parseBackupXml(definition);
  }

  async endBackup(uuid: string, socketPath: string): Promise<void> {
    const isUnderWay = async (): Promise<boolean> =>
      (await this.currentBackup(uuid))?.socketPath === socketPath;
    const deadline = performance.now() + this.#deadlines.changeMs;
    for (let asked = false; await isUnderWay(); asked = true) {
      if (!asked) await this.abortJob(uuid);
      if (performance.now() > deadline)
        throw new HypervisorError('DEADLINE_EXCEEDED', 'libvirt does not end the backup', {
          retryable: true,
        });
      await delay(abortRetryMs);
    }
  }

  askGuest(uuid: string, deadlineMs: number): Promise<void> {
    const args: [string, number] = [uuid, Math.max(1, Math.ceil(deadlineMs / 1000))];
    return this.#changes.request('askGuest', args, deadlineMs + this.#deadlines.changeMs);
  }

  freezeGuest(uuid: string, deadlineMs: number): Promise<number> {
    const args: [string, number] = [uuid, Math.max(1, Math.ceil(deadlineMs / 1000))];
    return this.#changes.request('freezeGuest', args, deadlineMs + this.#deadlines.changeMs);
  }

  /** Not among the long calls, which could all be busy, and on another connection than the freeze. */
  thawGuest(uuid: string, deadlineMs: number): Promise<number> {
    const args: [string, number] = [uuid, Math.max(1, Math.ceil(deadlineMs / 1000))];
    return this.#queries.request('thawGuest', args, deadlineMs + this.#deadlines.changeMs);
  }

  pull(uuid: string, options: PullOptions): Promise<void> {
    const { target, base = null, bandwidthBytesPerSecond } = options;
    return this.#change('pull', uuid, target, base, bandwidthBytesPerSecond);
  }

  commit(uuid: string, options: CommitOptions): Promise<void> {
    const { target, top, base, bandwidthBytesPerSecond } = options;
    return this.#change('commit', uuid, target, top, base, bandwidthBytesPerSecond);
  }

  pivot(uuid: string, target: string): Promise<void> {
    return this.#change('pivot', uuid, target);
  }

  blockJob(uuid: string, target: string): Promise<BlockJob | null> {
    return this.#query('blockJob', uuid, target);
  }

  setBlockJobBandwidth(uuid: string, target: string, bytesPerSecond: number): Promise<void> {
    return this.#change('setBlockJobBandwidth', uuid, target, bytesPerSecond);
  }

  abortBlockJob(uuid: string, target: string): Promise<void> {
    return this.#change('abortBlockJob', uuid, target);
  }

  snapshotNames(uuid: string): Promise<readonly string[]> {
    return this.#query('snapshotNames', uuid);
  }

  volumePath(pool: string, volume: string): Promise<string> {
    return this.#query('volumePath', pool, volume);
  }

  volumeSizeBytes(uuid: string, target: string): Promise<number> {
    return this.#query('volumeSizeBytes', uuid, target);
  }

  snapshotDefinitions(
    uuid: string,
  ): Promise<readonly { readonly name: string; readonly definition: string }[]> {
    return this.#query('snapshotDefinitions', uuid);
  }

  checkpointNames(uuid: string): Promise<readonly string[]> {
    return this.#query('checkpointNames', uuid);
  }

  async checkpoints(uuid: string): Promise<readonly Checkpoint[]> {
    const found = await this.#query('checkpointDefinitions', uuid);
    return found.map(({ name, xml }) => parseCheckpointXml(name, xml));
  }

  deleteCheckpoint(uuid: string, name: string, what: 'all' | 'metadata'): Promise<void> {
    return this.#change('deleteCheckpoint', uuid, name, what === 'metadata');
  }

  async flushVolume(uuid: string, target: string): Promise<void> {
    const index = topImageIndex(await this.definition(uuid, 'live'), target);
    await this.#change('flushVolume', uuid, target, index);
  }

  subscribe(listener: HypervisorListener): Promise<() => Promise<void>> {
    return this.#feed.subscribe(listener);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#feed.close(), this.#queries.close(), this.#changes.close()]);
  }

  /** Runs what writes memory into a file; `signal` aborts it. */
  async #writingMemory(
    uuid: string,
    file: string,
    signal: AbortSignal | undefined,
    write: () => Promise<void>,
  ): Promise<void> {
    if (signal?.aborted === true) throw aborted(signal);
    const settled = new AbortController();
    const onAbort = (): void => void this.#abortWriting(uuid, file, settled.signal);
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      await write();
    } finally {
      settled.abort();
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /**
   * Aborts our own save or snapshot and no other job: the file has content only when it has the machine to itself.
   * Tries until it has settled, whose outcome is what the caller gets.
   */
  async #abortWriting(uuid: string, file: string, settled: AbortSignal): Promise<void> {
    while (!settled.aborted) {
      try {
        if ((await sizeOf(file)) > 0) await this.abortJob(uuid);
      } catch (error) {
        if (!(error instanceof HypervisorError)) throw error;
      }
      await delay(abortRetryMs);
    }
  }

  #query<Name extends OperationName>(
    operation: Name,
    ...args: OperationArguments<Name>
  ): Promise<OperationResult<Name>> {
    return quickQuestions.has(operation)
      ? this.#queries.ask(operation, args, this.#deadlines.queryMs)
      : this.#queries.request(operation, args, this.#deadlines.queryMs);
  }

  /** What is done as soon as a question is answered, but must neither be done twice nor hold up events. */
  #quickChange<Name extends OperationName>(
    operation: Name,
    ...args: OperationArguments<Name>
  ): Promise<OperationResult<Name>> {
    return this.#queries.request(operation, args, this.#deadlines.queryMs);
  }

  #change<Name extends OperationName>(
    operation: Name,
    ...args: OperationArguments<Name>
  ): Promise<OperationResult<Name>> {
    return this.#changes.request(operation, args, this.#deadlines.changeMs);
  }
}

async function sizeOf(file: string): Promise<number> {
  try {
    return (await stat(file)).size;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 0;
    throw error;
  }
}

function aborted(signal: AbortSignal): HypervisorError {
  return new HypervisorError('OPERATION_ABORTED', 'it was aborted before it began', {
    cause: signal.reason,
  });
}

function topImageIndex(definition: string, target: string): number {
  let index: number | undefined;
  try {
    index = DomainXml.parse(definition).volume(target).index;
  } catch (error) {
    if (!(error instanceof DomainXmlError)) throw error;
    throw new HypervisorError('OPERATION_FAILED', error.message, { cause: error });
  }
  if (index === undefined) {
    throw new HypervisorError('MACHINE_STATE_INVALID', 'only a machine that is on has volumes to flush');
  }
  return index;
}

function without(targets: readonly string[], named: readonly string[]): readonly string[] {
  return targets.filter((target) => !named.includes(target));
}
