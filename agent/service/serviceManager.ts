import { messageOf } from '../../common/errors.ts';
import type { Logger } from '../../common/log.ts';
import { NotifySocket } from '../../common/notifySocket.ts';
import type { Journal } from '../jobs/journal.ts';
import type { Pulse } from './pulse.ts';
import { type ServiceState, statusLine } from './statusLine.ts';

/** What is told at least so often, where there is something to tell. */
const beatMaxMs = 10_000;
/** The watchdog is fed so many times in its interval. */
const beatsPerInterval = 4;
/** By this much the manager is asked for more time, again with each beat. */
const extensionMs = 3 * beatMaxMs;

/** What is told of, and by whom. */
export interface ToldService {
  readonly journal: Pick<Journal, 'holding' | 'progress'>;
  /** Ids of jobs at work in this process. */
  readonly atWork: () => readonly string[];
  readonly pulse: Pulse;
  readonly log: Logger;
  /** So long a stop may take before no more time is asked for. */
  readonly stopMs: number;
  /** Monotonic; that of the host unless told. */
  readonly nowMs?: () => number;
}

/** Where messages go; null: nobody started us who would want any. */
type Line = Pick<NotifySocket, 'send'> & Partial<Disposable>;

/**
 * Tells the service manager, systemd, how the service is: that it is ready, what it is at, that it ends. The watchdog
 * is fed as long as the event loop turns, its loops look, and the journal can be read; should one of these not be, it
 * starves, and systemd starts the service anew. Without a manager nothing is done at all.
 */
export class ServiceManager implements Disposable {
  readonly #line: Line | null;
  readonly #service: ToldService;
  readonly #nowMs: () => number;
  readonly #feeds: boolean;
  #timer: NodeJS.Timeout | undefined;
  #status = '';
  #problem: string | null = null;
  #endingSinceMs: number | null = null;

  /** @param watchdogMs interval of the watchdog; null: there is none */
  constructor(line: Line | null, watchdogMs: number | null, service: ToldService) {
    this.#line = line;
    this.#service = service;
    this.#nowMs = service.nowMs ?? (() => performance.now());
    this.#feeds = watchdogMs !== null;
    if (line === null) return;
    const beatMs = Math.min(beatMaxMs, (watchdogMs ?? Number.POSITIVE_INFINITY) / beatsPerInterval);
    this.#timer = setInterval(() => this.beat(), beatMs);
  }

  /**
   * By what the environment says (sd_notify(3), sd_watchdog_enabled(3)); what it says is taken out, because children are
   * no concern of the manager.
   */
  static async open(
    service: ToldService,
    environment: NodeJS.ProcessEnv = process.env,
  ): Promise<ServiceManager> {
    const { NOTIFY_SOCKET: name, WATCHDOG_USEC: intervalUs, WATCHDOG_PID: pid } = environment;
    for (const key of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete environment[key];
    const isOurs = pid === undefined || pid === String(process.pid);
    const watchdogMs = isOurs && Number(intervalUs) > 0 ? Number(intervalUs) / 1000 : null;
    let line: NotifySocket | null = null;
    try {
      if (name !== undefined && name !== '') line = await NotifySocket.open(name);
    } catch (error) {
      service.log.error({ err: error }, 'the service manager cannot be told anything');
    }
    return new ServiceManager(line, watchdogMs, service);
  }

  /** The service can be asked for all that it does. */
  ready(): void {
    this.#tell({ READY: '1' });
    this.beat();
  }

  /** The service ends: from now on time is asked for as long as it may take. */
  stopping(): void {
    this.#endingSinceMs = this.#nowMs();
    this.#tell({ STOPPING: '1' });
    this.beat();
  }

  /** What is told again and again; called by a timer, so that it tells of the event loop, too. */
  beat(): void {
    if (this.#line === null) return;
    const state = this.#look();
    this.#note(state.problem);
    if (this.#feeds && state.problem === null) this.#tell({ WATCHDOG: '1' });
    const endingMs = this.#endingSinceMs === null ? null : this.#nowMs() - this.#endingSinceMs;
    if (endingMs !== null && endingMs < this.#service.stopMs)
      this.#tell({ EXTEND_TIMEOUT_USEC: String(extensionMs * 1000) });
    const status = statusLine(state);
    if (status !== this.#status) this.#tell({ STATUS: status });
    this.#status = status;
  }

  #look(): ServiceState {
    const { journal, atWork, pulse } = this.#service;
    const ending = this.#endingSinceMs !== null;
    try {
      const own = new Set(atWork());
      const jobs = journal
        .holding()
        .filter(({ id }) => own.has(id))
        .map((job) => ({ ...job, progress: journal.progress(job.id) }));
      // At the end of the service its loops end.
      const silent = ending ? null : pulse.silent(this.#nowMs());
      const problem = silent === null ? null : `the loop of ${silent} does not look any more`;
      return { jobs, nextDueMs: pulse.nextDueMs(), ending, problem };
    } catch (error) {
      const problem = `the journal cannot be read: ${messageOf(error)}`;
      return { jobs: [], nextDueMs: null, ending, problem };
    }
  }

  /** Once for each problem. */
  #note(problem: string | null): void {
    if (problem !== null && problem !== this.#problem)
      this.#service.log.error({ problem }, 'the service is stuck: its watchdog is not fed');
    this.#problem = problem;
  }

  #tell(assignments: Readonly<Record<string, string>>): void {
    this.#line?.send(assignments).catch((error: unknown) => {
      this.#service.log.warn(
        { err: error, said: Object.keys(assignments) },
        'the service manager was not told',
      );
    });
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#line?.[Symbol.dispose]?.();
  }
}
