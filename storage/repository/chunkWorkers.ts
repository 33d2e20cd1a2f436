import { availableParallelism } from 'node:os';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { type ChunkTask, givenAway, perform, type ResultOf } from './chunkTasks.ts';
import type { Reply } from './chunkWorker.ts';

/** More of them than this need more memory than they are worth. */
const threadsMax = 8;
/** Tasks that a thread has before it, so that it need not wait for the next one. */
const queuedPerThread = 2;
const idleMsDefault = 5_000;
/** So much of a piece of work is done before threads are worth their start (0.1 s and 10 MiB each). */
const inlineBytesDefault = 8 * 1024 * 1024;

/** Beside this file, in the form that this file has: `.ts` in a checkout, `.js` when built. */
const workerFile = fileURLToPath(new URL(`chunkWorker${extname(import.meta.url)}`, import.meta.url));

export interface ChunkWorkersOptions {
  /** Threads at most; as many as there are processors unless told, and never more than 8. */
  readonly threads?: number | undefined;
  /** Threads that had nothing to do for so long are ended. */
  readonly idleMs?: number | undefined;
  /** What each piece of work does on the caller's own thread first; 8 MiB unless told. */
  readonly inlineBytes?: number | undefined;
  /** The program of a thread, for tests. */
  readonly file?: string | undefined;
}

/** A task, and who waits for what comes of it. */
interface Pending {
  readonly task: ChunkTask;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Threads for what takes time with chunks. They are started when there is something to do, end when there was nothing
 * for some seconds, and keep the process alive only while somebody waits for them.
 */
export class ChunkWorkers {
  /** At most. */
  readonly threads: number;
  readonly #options: ChunkWorkersOptions;
  readonly #running = new Set<Thread>();
  readonly #waiting: Pending[] = [];
  #idle: NodeJS.Timeout | null = null;

  constructor(options: ChunkWorkersOptions = {}) {
    this.#options = options;
    this.threads = Math.max(1, Math.min(options.threads ?? threadsMax, availableParallelism(), threadsMax));
  }

  /** Threads that there are now. */
  get running(): number {
    return this.#running.size;
  }

  /** A piece of work of its own: its beginning is done here, and what is more by the threads. */
  begin(): ChunkWork {
    return new ChunkWork(this, this.#options.inlineBytes ?? inlineBytesDefault);
  }

  /**
   * Has a thread do a task. Its shared memory must stay as it is until this settles; memory that is given away is gone.
   *
   * Rejects with what the task throws, and with an Error when the thread ends before it is done.
   */
  async run<Task extends ChunkTask>(task: Task): Promise<ResultOf<Task>> {
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#waiting.push({ task, resolve, reject });
    this.#spread();
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what our own thread answers to a task of this kind
    return (await promise) as ResultOf<Task>;
  }

  /** Ends the threads that have nothing to do; the next task starts them again. */
  async rest(): Promise<void> {
    const idle = [...this.#running].filter(({ load }) => load === 0);
    await Promise.all(idle.map(async (thread) => thread.end()));
  }

  /** Gives waiting tasks to the threads that have least to do, and starts threads while all have some. */
  #spread(): void {
    while (this.#waiting.length > 0) {
      const [free] = [...this.#running].toSorted((one, other) => one.load - other.load);
      if ((free === undefined || free.load > 0) && this.#running.size < this.threads) this.#start();
      else if (free === undefined || free.load >= queuedPerThread) break;
      else {
        const next = this.#waiting.shift();
        if (next !== undefined) free.give(next);
      }
    }
    this.#watchIdle();
  }

  #start(): void {
    const thread = new Thread(this.#options.file ?? workerFile, {
      onFree: () => this.#spread(),
      onEnd: () => {
        this.#running.delete(thread);
        this.#spread();
      },
    });
    this.#running.add(thread);
  }

  #watchIdle(): void {
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    if (this.#running.size === 0 || [...this.#running].some(({ load }) => load > 0)) return;
    this.#idle = setTimeout(() => void this.rest(), this.#options.idleMs ?? idleMsDefault);
    // Being idle is no reason for the process to live on.
    this.#idle.unref();
  }
}

/** A piece of work, such as a session: small ones never need a thread. */
export class ChunkWork {
  readonly #workers: ChunkWorkers;
  #inlineBytes: number;

  constructor(workers: ChunkWorkers, inlineBytes: number) {
    this.#workers = workers;
    this.#inlineBytes = inlineBytes;
  }

  /** How many tasks keep all threads busy. */
  get width(): number {
    return this.#workers.threads * queuedPerThread;
  }

  /** Does a task, see `ChunkWorkers.run`. @param bytes how much there is to do */
  async run<Task extends ChunkTask>(task: Task, bytes: number): Promise<ResultOf<Task>> {
    // What is small is done sooner than it is told.
    if (bytes < smallBytes) return perform(task);
    if (this.#inlineBytes <= 0) return this.#workers.run(task);
    this.#inlineBytes -= bytes;
    return perform(task);
  }
}

const smallBytes = 48 * 1024;

/** One thread and the tasks that it was given. */
class Thread {
  readonly #worker: Worker;
  readonly #given: Pending[] = [];
  readonly #onFree: () => void;
  #failure: unknown = null;
  #isEnding = false;

  constructor(file: string, { onFree, onEnd }: { readonly onFree: () => void; readonly onEnd: () => void }) {
    this.#onFree = onFree;
    // Neither the options nor the loaders of the parent are for it.
    this.#worker = new Worker(file, { execArgv: [], env: {}, name: 'chunks' });
    this.#worker.on('message', (reply: Reply) => this.#receive(reply));
    this.#worker.on('messageerror', (error) => void this.#fail(error));
    this.#worker.on('error', (error) => {
      this.#failure = error;
    });
    this.#worker.on('exit', () => {
      this.#isEnding = true;
      const lost = new Error('a thread that worked on chunks has ended', { cause: this.#failure });
      for (const { reject } of this.#given.splice(0)) reject(lost);
      onEnd();
    });
  }

  /** Tasks it has; one that is ending takes no more. */
  get load(): number {
    return this.#isEnding ? Number.POSITIVE_INFINITY : this.#given.length;
  }

  give(pending: Pending): void {
    try {
      this.#worker.postMessage(pending.task, [...givenAway(pending.task)]);
    } catch (error) {
      pending.reject(error);
      return;
    }
    this.#given.push(pending);
    this.#worker.ref();
  }

  async end(): Promise<void> {
    this.#isEnding = true;
    await this.#worker.terminate();
  }

  #receive(reply: Reply): void {
    // It does its tasks in the order in which it gets them.
    const done = this.#given.shift();
    // Having nothing to do is no reason for the process to live on.
    if (this.#given.length === 0) this.#worker.unref();
    if ('error' in reply) done?.reject(reply.error);
    else done?.resolve(reply.result);
    this.#onFree();
  }

  async #fail(error: unknown): Promise<void> {
    this.#failure = error;
    await this.end();
  }
}

/** Those of this process: however many repositories are open, it has so many processors only. */
export const processWorkers = new ChunkWorkers();
