import type { Checkpoint, PullBackup } from './backupXml.ts';
import type { ProcessUser } from './capabilitiesXml.ts';
import type { ProcessorRequirement } from './processorXml.ts';

/**
 * The port through which everything else talks to libvirt and QEMU. Two implementations pass one
 * conformance suite: `libvirt/` (the real one) and `test/sim/` (the simulator of the unit tests).
 *
 * All operations identify a machine by its UUID: names can be given to another machine while a job runs.
 * All are bounded: each has a deadline of its own, and past it rejects with `DEADLINE_EXCEEDED` although
 * what it started may still go on inside libvirtd (libvirt does not end an operation with its client).
 * Rejections are `HypervisorError`.
 */

/** `virDomainState`, in libvirt's words. */
export type MachineState =
  | 'running'
  | 'blocked'
  | 'paused'
  | 'shutting-down'
  | 'shut-off'
  | 'crashed'
  | 'pmsuspended'
  | 'no-state';

/** State and the reason that libvirt gives for it, e.g. `paused` because of `user`, `io-error`, `saving`. */
export interface MachineStatus {
  readonly state: MachineState;
  /** libvirt's reason in lower case with dashes: `saved`, `crashed`, `destroyed`, `shutdown`, `unknown`, … */
  readonly reason: string;
}

export interface MachineSummary {
  readonly uuid: string;
  readonly name: string;
  readonly status: MachineStatus;
  /** False for a transient machine, whose definition goes when it stops. */
  readonly persistent: boolean;
  readonly autostart: boolean;
  /** A `virsh managedsave` image waits for the next start. */
  readonly hasManagedSave: boolean;
}

/** A definition that is not a machine's: what its next start uses. */
export interface HostDefinition {
  readonly kind: 'network' | 'pool' | 'nwfilter' | 'secret';
  /** Of a secret its UUID. */
  readonly name: string;
  readonly uuid: string;
  readonly definition: string;
  /** `null` where nothing is started. */
  readonly autostart: boolean | null;
}

export interface HostInfo {
  readonly hostName: string;
  readonly libvirtVersion: string;
  readonly qemuVersion: string;
  readonly uri: string;
}

/**
 * - `live`: what runs now (of a machine that is off: the persistent one)
 * - `persistent`: what the next start uses, without secrets
 * - `persistent-secure`: the same with secrets, so that it can be defined again
 * - `migratable`: the one a save image may be given; with secrets (flags MIGRATABLE | SECURE)
 */
export type DefinitionKind = 'live' | 'persistent' | 'persistent-secure' | 'migratable';

/** `virDomainGetJobInfo`, reduced to what a decision needs. */
export interface MachineJob {
  readonly kind: 'none' | 'bounded' | 'unbounded';
  readonly processedBytes: number;
  readonly totalBytes: number;
}

/** A block job on one volume. `null` from `blockJob()` means there is none. */
export interface BlockJob {
  readonly kind: string;
  readonly bandwidthBytesPerSecond: number;
  readonly currentBytes: number;
  readonly endBytes: number;
  /** Of an active commit: the base holds all that the top holds, and `pivot` may be asked for. */
  readonly ready: boolean;
}

export interface SaveOptions {
  /** Fresh path that does not exist; libvirt writes it as root. There is no save without one (trap 3). */
  readonly file: string;
  /** Definition that goes into the image; must be a corrected `migratable` one (trap 1). */
  readonly definition: string;
  readonly deadlineMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface RestoreStateOptions {
  readonly file: string;
  /** Replaces the definition inside the image; libvirt checks that the guest sees the same machine. */
  readonly definition?: string | undefined;
  /** Leave the vCPUs stopped, whatever the image says. */
  readonly paused: boolean;
  readonly deadlineMs?: number | undefined;
}

export interface PullOptions {
  readonly target: string;
  /** Stop above this image of the chain; `undefined` pulls the whole chain into the top image. */
  readonly base?: string | undefined;
  /** 0 is without limit. */
  readonly bandwidthBytesPerSecond: number;
}

export interface LiveSnapshotOptions {
  /** Fresh path that does not exist; libvirt writes a save image there as root, mode 0600. */
  readonly memoryFile: string;
  /**
   * Every volume that the snapshot is of, each with an empty qcow2 image over its present one. Owner and mode of
   * these images are the caller's. The volumes that are not named stay as they are.
   */
  readonly overlays: readonly { readonly target: string; readonly overlay: string }[];
  readonly deadlineMs?: number | undefined;
  /** Ends it as long as memory is written: nothing has changed then. */
  readonly signal?: AbortSignal | undefined;
}

export interface CommitOptions {
  readonly target: string;
  /** The volume's present image, from which is copied. */
  readonly top: string;
  /** The image into which is copied, and that the volume has after `pivot`. Never left to libvirt's choice. */
  readonly base: string;
  /** 0 is without limit. */
  readonly bandwidthBytesPerSecond: number;
}

/** What happened on the host, with the monotonic clock of this machine (`performance.now()` scale, ms). */
export type HypervisorEvent =
  | {
      readonly kind: 'lifecycle';
      readonly uuid: string;
      readonly event:
        | 'defined'
        | 'undefined'
        | 'started'
        | 'suspended'
        | 'resumed'
        | 'stopped'
        | 'shutdown'
        | 'pmsuspended'
        | 'crashed';
      readonly detail: number;
      /** `Date.now()` when it arrived. */
      readonly atMs: number;
      /** Monotonic clock when it arrived (`process.hrtime`, ms); differences are pauses. */
      readonly monotonicMs: number;
    }
  | {
      readonly kind: 'block-job';
      readonly uuid: string;
      readonly target: string;
      readonly status: 'completed' | 'failed' | 'canceled' | 'ready';
      readonly atMs: number;
      readonly monotonicMs: number;
    }
  | {
      readonly kind: 'io-error';
      readonly uuid: string;
      readonly path: string;
      /** `enospc`, or what QEMU says. */
      readonly reason: string;
      readonly atMs: number;
      readonly monotonicMs: number;
    }
  | {
      /** The connection was lost and made again: events may be missing, look at the world. */
      readonly kind: 'reconnected';
      readonly atMs: number;
      readonly monotonicMs: number;
    };

export type HypervisorListener = (event: HypervisorEvent) => void;

export interface Hypervisor extends AsyncDisposable {
  /** Makes ready what a pause needs and keeps it so until disposed: inside a pause nothing is started. */
  warmUp(): Promise<Disposable>;
  /**
   * Keeps what a question needs ready until disposed: from a moment later on it waits for libvirt alone. For a process
   * that stays, and is asked at any time.
   */
  stayReady(): Promise<Disposable>;
  hostInfo(): Promise<HostInfo>;
  /**
   * The user and group as which libvirt starts a machine whose definition says nothing of it.
   * @throws HypervisorError OPERATION_UNSUPPORTED where libvirt does not say
   */
  defaultUser(): Promise<ProcessUser>;
  /**
   * Whether QEMU on this host can offer a processor to a machine.
   * @throws HypervisorError for one that libvirt does not know, or cannot compare
   */
  offersProcessor(processor: ProcessorRequirement): Promise<boolean>;
  machines(): Promise<readonly MachineSummary[]>;
  /** Everything else that libvirt has a definition of. Of secrets there are no values. */
  hostDefinitions(): Promise<readonly HostDefinition[]>;
  /** By name or UUID. Rejects with MACHINE_NOT_FOUND. */
  findMachine(nameOrUuid: string): Promise<MachineSummary>;
  machine(uuid: string): Promise<MachineSummary>;
  status(uuid: string): Promise<MachineStatus>;
  definition(uuid: string, kind: DefinitionKind): Promise<string>;
  setAutostart(uuid: string, autostart: boolean): Promise<void>;

  /** Stores a persistent definition (new or replacing the one of the same UUID). */
  define(definition: string): Promise<void>;
  /** Removes the persistent definition; keeps NVRAM files. */
  undefine(uuid: string): Promise<void>;
  start(uuid: string, options?: { readonly paused?: boolean | undefined }): Promise<void>;
  /** Starts a machine that is not defined and that libvirt forgets when it stops; it runs. */
  startTransient(definition: string): Promise<void>;
  /**
   * Writes what a machine's first screen shows into a new file; returns its type, `image/png` or
   * `image/x-portable-pixmap`.
   * @throws HypervisorError where there is no screen
   */
  screenshot(uuid: string, file: string): Promise<string>;
  suspend(uuid: string): Promise<void>;
  resume(uuid: string): Promise<void>;
  /** Power off at once (`virDomainDestroy` with GRACEFUL: SIGTERM, so that QEMU closes its images). */
  powerOff(uuid: string): Promise<void>;

  /** Saves CPU and memory into a file; the machine stops. */
  save(uuid: string, options: SaveOptions): Promise<void>;
  /** Starts a machine from a state file. */
  restoreState(options: RestoreStateOptions): Promise<void>;
  /** The definition inside a save image (with secrets). */
  stateDefinition(file: string): Promise<string>;
  /** Replaces the definition inside a complete save image. */
  setStateDefinition(file: string, definition: string): Promise<void>;
  /**
   * Takes CPU, memory and volumes of a running machine at one instant while it runs on: its memory goes into a save
   * image until only a little is left, then the vCPUs stop for the rest, the overlays become the volumes' images, in
   * the live and in the persistent definition, and the vCPUs run on. No snapshot metadata is kept.
   * @throws HypervisorError OPERATION_ABORTED when `signal` or `abortJob` ended it; the machine is as before
   */
  snapshotLive(uuid: string, options: LiveSnapshotOptions): Promise<void>;
  /** How long the vCPUs may stop for the rest of the memory, while a live snapshot or a migration is under way. */
  setMaxDowntime(uuid: string, downtimeMs: number): Promise<void>;
  /** What libvirt itself is doing with the machine (saving, dumping, …). */
  job(uuid: string): Promise<MachineJob>;
  /** Aborts that job; of a save: the file goes and the machine runs on. */
  abortJob(uuid: string): Promise<void>;

  /**
   * The user and group that a running machine's QEMU works as.
   * @throws HypervisorError MACHINE_STATE_INVALID for a machine that has none
   */
  processUser(uuid: string): Promise<{ readonly uid: number; readonly gid: number }>;
  /**
   * Starts a pull-mode backup: from one instant on QEMU serves the named volumes as they were then, read-only,
   * over a unix socket. The guest runs on; what it overwrites goes to the scratch files. Ended by `endBackup`.
   * @param checkpoint is made at that very instant, or not at all when the backup does not begin
   * @throws HypervisorError OPERATION_UNSUPPORTED, MACHINE_STATE_INVALID (off, or a block job or backup in the way),
   *   CHECKPOINT_UNUSABLE (one of those since which changes were asked for; see `brokenTarget`)
   */
  beginBackup(uuid: string, backup: PullBackup, checkpoint?: Checkpoint): Promise<void>;
  /**
   * Makes a checkpoint of a running machine: from here on its bitmaps note what is changed.
   * @throws HypervisorError OPERATION_UNSUPPORTED (also for a machine that is off), OPERATION_FAILED
   */
  createCheckpoint(uuid: string, checkpoint: Checkpoint): Promise<void>;
  /** The pull-mode backup that is under way, ours or another's; `null` if there is none. */
  currentBackup(uuid: string): Promise<PullBackup | null>;
  /**
   * Ends the backup that uses this socket; the scratch files go. Does nothing when there is none, or another one.
   * Returns when it is gone.
   */
  endBackup(uuid: string, socketPath: string): Promise<void>;

  /**
   * Asks the guest's agent a harmless question (its clock): whether one answers that can do more. It refuses while
   * the guest is frozen.
   * @throws HypervisorError as `freezeGuest`
   */
  askGuest(uuid: string, deadlineMs: number): Promise<void>;
  /**
   * Has the guest's agent flush and freeze the file systems: the guest's writes wait until they are thawed. A call
   * that fails may still be obeyed later, by an agent that was only slow: it must always be followed by a thaw.
   * @returns how many file systems it has frozen
   * @throws HypervisorError GUEST_AGENT_UNAVAILABLE, OPERATION_FAILED (it refuses), MACHINE_STATE_INVALID (not running),
   * OPERATION_UNSUPPORTED (no channel)
   */
  freezeGuest(uuid: string, deadlineMs: number): Promise<number>;
  /**
   * Has the guest's agent thaw what is frozen; does no harm where nothing is. The agent obeys in the order in which
   * it is asked: after a thaw that succeeded no earlier freeze can take effect any more.
   * @returns how many file systems it has thawed
   */
  thawGuest(uuid: string, deadlineMs: number): Promise<number>;

  pull(uuid: string, options: PullOptions): Promise<void>;
  /**
   * Begins to copy what a volume's present image holds into the one below it. The guest goes on writing to `top`, and
   * the job stays, `ready`, until `pivot` or `abortBlockJob`. From its begin `base` is not what it was any more.
   */
  commit(uuid: string, options: CommitOptions): Promise<void>;
  /**
   * Ends an active commit that is ready: `base` is the volume's image again, live and persistent.
   * @throws HypervisorError when the job is not ready, or not there
   */
  pivot(uuid: string, target: string): Promise<void>;
  blockJob(uuid: string, target: string): Promise<BlockJob | null>;
  setBlockJobBandwidth(uuid: string, target: string, bytesPerSecond: number): Promise<void>;
  abortBlockJob(uuid: string, target: string): Promise<void>;
  /**
   * Where a volume of a storage pool is.
   * @throws HypervisorError for a pool or volume that is not there, or a pool that is not active
   */
  volumePath(pool: string, volume: string): Promise<string>;
  /** What the guest has of a volume, of a machine that runs. */
  volumeSizeBytes(uuid: string, target: string): Promise<number>;
  /** Names of the libvirt snapshots of a machine. */
  snapshotNames(uuid: string): Promise<readonly string[]>;
  /** The same with their definitions. */
  snapshotDefinitions(
    uuid: string,
  ): Promise<readonly { readonly name: string; readonly definition: string }[]>;
  /** Names of the libvirt checkpoints of a machine. */
  checkpointNames(uuid: string): Promise<readonly string[]>;
  /**
   * The libvirt checkpoints of a machine, the oldest first. One that is listed may be unusable all the same: whether
   * its bitmaps are in order shows only when they are used.
   */
  checkpoints(uuid: string): Promise<readonly Checkpoint[]>;
  /**
   * Deletes a checkpoint; does nothing when there is none.
   * @param what `all`: with its bitmaps, of a machine that runs. `metadata`: what libvirt knows of it only.
   * @throws HypervisorError OPERATION_UNSUPPORTED for `all` of a machine that is off; OPERATION_FAILED when a bitmap
   *   is missing
   */
  deleteCheckpoint(uuid: string, name: string, what: 'all' | 'metadata'): Promise<void>;
  /**
   * Asks QEMU's monitor to flush one volume. Taints the machine `custom-monitor`: only for a machine that is
   * paused, where suspend and resume flush nothing (trap 2).
   */
  flushVolume(uuid: string, target: string): Promise<void>;

  /** Domain events, in order, until the returned function is called. */
  subscribe(listener: HypervisorListener): Promise<() => Promise<void>>;
}
