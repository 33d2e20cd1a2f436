import type { Extent, VolumeSource } from '../common/volumeSource.ts';
import { NbdClient } from './client.ts';
import { NbdError, protocolError } from './errors.ts';
import { allocation, dirtyFlag } from './protocol.ts';

const allocationContext = 'base:allocation';
const bitmapPrefix = 'qemu:dirty-bitmap:';
/** More connections than this bring nothing: QEMU serves an export from one thread. */
const connectionsMax = 4;
/** How long a further connection may take before the volume does without it. */
const furtherMs = 2_000;

export interface VolumeOptions {
  /** The unix socket that the server listens at. */
  readonly socketPath: string;
  readonly exportName: string;
  /** Contexts for `dirtyExtents`, such as `qemu:dirty-bitmap:NAME`. */
  readonly dirtyContexts?: readonly string[] | undefined;
  /** How long the server may take to open the export, and then for each request. */
  readonly answerMs: number;
  /** 1 to 4, 2 unless told; more than one is used only where the server allows it. */
  readonly connections?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A stretch of a volume, by whether it was written to since a bitmap was started. */
export interface DirtyExtent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly dirty: boolean;
}

/** A volume behind an NBD export. Ends with its connections: a read on a dead one rejects. */
export class NbdVolume implements VolumeSource {
  readonly virtualSizeBytes: number;
  /** The first one has the contexts. */
  readonly #clients: readonly [NbdClient, ...NbdClient[]];
  #turn = 0;

  private constructor(clients: readonly [NbdClient, ...NbdClient[]]) {
    this.#clients = clients;
    this.virtualSizeBytes = clients[0].sizeBytes;
  }

  /**
   * Opens an export. Further connections only make it faster: those that do not come are done without.
   *
   * @throws what `NbdClient.connect` throws, NBD_CONTEXT_MISSING also for a server without `base:allocation`.
   */
  static async open(options: VolumeOptions): Promise<NbdVolume> {
    const { dirtyContexts = [], ...rest } = options;
    const first = await NbdClient.connect({ ...rest, metaContexts: [allocationContext, ...dirtyContexts] });
    try {
      return new NbdVolume([first, ...(await openFurther(first, options))]);
    } catch (error) {
      await first[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** How many connections the reads are spread over. */
  get connections(): number {
    return this.#clients.length;
  }

  /**
   * What `base:allocation` says. Only what the server knows to be zero is `zero`; a hole without that promise
   * must be read.
   */
  async extents(signal?: AbortSignal): Promise<readonly Extent[]> {
    const runs = await this.#runs(allocationContext, allocation.zero, signal);
    return runs.map(({ offsetBytes, lengthBytes, set }) => ({ offsetBytes, lengthBytes, zero: set }));
  }

  /**
   * What a dirty bitmap says, from 0 to the size, in order and without gaps, neighbours of one kind joined.
   *
   * @throws NBD_CONTEXT_MISSING for a context that the volume was not opened with, or that is no bitmap.
   */
  async dirtyExtents(context: string, signal?: AbortSignal): Promise<readonly DirtyExtent[]> {
    if (!context.startsWith(bitmapPrefix))
      throw new NbdError('NBD_CONTEXT_MISSING', `${context} is not the context of a dirty bitmap`);
    const runs = await this.#runs(context, dirtyFlag, signal);
    return runs.map(({ offsetBytes, lengthBytes, set }) => ({ offsetBytes, lengthBytes, dirty: set }));
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    const client = this.#clients[this.#turn % this.#clients.length] ?? this.#clients[0];
    this.#turn = (this.#turn + 1) % this.#clients.length;
    await client.readInto(target, offsetBytes, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#clients.map((client) => client[Symbol.asyncDispose]()));
  }

  /** The whole volume by one flag of a context. */
  async #runs(context: string, flag: number, signal: AbortSignal | undefined): Promise<readonly FlagRun[]> {
    const runs: { offsetBytes: number; lengthBytes: number; set: boolean }[] = [];
    let position = 0;
    for (const status of await this.#clients[0].blockStatus(context, 0, this.virtualSizeBytes, signal)) {
      const set = (status.flags & flag) !== 0;
      if (status.offsetBytes !== position) throw gap(position);
      position += status.lengthBytes;
      const last = runs.at(-1);
      if (last?.set === set) last.lengthBytes += status.lengthBytes;
      else runs.push({ offsetBytes: status.offsetBytes, lengthBytes: status.lengthBytes, set });
    }
    if (position !== this.virtualSizeBytes) throw gap(position);
    return runs;
  }
}

interface FlagRun {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly set: boolean;
}

/** A backup with a gap in its map would lose data without a word. */
function gap(positionBytes: number): NbdError {
  return protocolError(`the map of the volume has a gap at ${positionBytes}`);
}

/**
 * Opens the connections beside the first.
 *
 * @throws NBD_PROTOCOL if one of them shows another size, or the reason of the signal.
 */
async function openFurther(first: NbdClient, options: VolumeOptions): Promise<readonly NbdClient[]> {
  const wanted = Math.min(options.connections ?? 2, connectionsMax);
  if (!first.canMultiConn || wanted < 2) return [];
  const { socketPath, exportName, answerMs } = options;
  const patience = AbortSignal.timeout(furtherMs);
  const signal = options.signal === undefined ? patience : AbortSignal.any([options.signal, patience]);
  const attempts = await Promise.allSettled(
    Array.from({ length: wanted - 1 }, () => NbdClient.connect({ socketPath, exportName, answerMs, signal })),
  );
  const clients = attempts.flatMap((attempt) => (attempt.status === 'fulfilled' ? [attempt.value] : []));
  try {
    options.signal?.throwIfAborted();
    if (clients.some(({ sizeBytes }) => sizeBytes !== first.sizeBytes))
      throw protocolError('two connections show the export in different sizes');
    return clients;
  } catch (error) {
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
    throw error;
  }
}
