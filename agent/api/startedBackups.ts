import { type ErrorRecord, errorRecord } from '../../common/errors.ts';
import type { Logger } from '../../common/log.ts';
import type { MachineIdentity } from '../../storage/storage.ts';
import type { Agent } from '../agent.ts';
import type { BackupRequest } from '../backupRequests.ts';
import type { JobRow } from '../jobs/job.ts';
import type { RequestKey, RequestOutcome } from '../jobs/requestRows.ts';
import type { Background } from './background.ts';
import { type Caller, scopeOf } from './caller.ts';
import { ApiError } from './errors.ts';
import type { JobSignals } from './jobSignals.ts';
import { fingerprintOf, partsOf, type StartRequest } from './startRequest.ts';

/** Of so many backups the copies are remembered, the newest. */
const rememberedMax = 1000;

/** How one copy ended that a policy asks for after a backup. */
export interface CopyOutcome {
  readonly from: string;
  readonly to: string;
  /** null: it could not be created. */
  readonly job: JobRow | null;
  readonly error: ErrorRecord | null;
}

/** The copies after a backup, as far as they are known. */
export interface CopiesOfBackup {
  readonly outcomes: readonly CopyOutcome[];
  readonly ended: boolean;
}

/** Makes the copies that a policy asks for after a backup; never rejects. */
export type MakeCopies = (machine: MachineIdentity, onCopy: (outcome: CopyOutcome) => void) => Promise<void>;

export interface StartedBackupsOptions {
  readonly agent: Agent;
  readonly log: Logger;
  readonly signals: JobSignals;
  readonly background: Background;
  readonly makeCopies: MakeCopies;
  /** Aborted when nothing new is to be begun. */
  readonly ending: AbortSignal;
}

/**
 * The backups that were asked for over the API, and the restores. They belong to the service: not more at a time than
 * `agent.maxParallelMachines`, in the order in which they came, to their ends whoever still listens.
 */
export class StartedBackups {
  readonly #options: StartedBackupsOptions;
  readonly #requests = new Map<string, Promise<unknown>>();
  readonly #waiting = new Map<string, JobRow>();
  readonly #running = new Set<string>();
  readonly #copies = new Map<string, { outcomes: CopyOutcome[]; ended: boolean }>();
  #lane: Promise<void> = Promise.resolve();

  constructor(options: StartedBackupsOptions) {
    this.#options = options;
    options.ending.addEventListener('abort', () => this.#cancelWaiting(), { once: true });
  }

  /**
   * Begins backups, once for each key: a request that is repeated gets what it got before, and what was cut short is
   * gone on with.
   * @returns what became of each machine, in the order of the request
   * @throws ApiError IDEMPOTENCY_KEY_REUSED, TOO_MANY_REQUESTS, SERVICE_ENDING; JobError JOURNAL_UNUSABLE
   */
  async start(request: StartRequest, caller: Caller): Promise<readonly RequestOutcome[]> {
    const key = { scope: scopeOf(caller), key: request.key };
    return this.once(key, () => this.#carryOut(request, key, caller));
  }

  /** Carries a request out after those with the same key: the later one finds what the first has begun. */
  async once<T>({ scope, key }: RequestKey, carryOut: () => Promise<T>): Promise<T> {
    const name = `${scope} ${key}`;
    const before = this.#requests.get(name) ?? Promise.resolve();
    const work = before.then(carryOut, carryOut);
    this.#requests.set(name, work);
    try {
      return await work;
    } finally {
      if (this.#requests.get(name) === work) this.#requests.delete(name);
    }
  }

  /** Has a job that is written down done when its turn comes. */
  begin(job: JobRow): void {
    this.#waiting.set(job.id, job);
    this.#next();
  }

  async #carryOut(
    request: StartRequest,
    key: RequestKey,
    caller: Caller,
  ): Promise<readonly RequestOutcome[]> {
    const known = this.#open(key, fingerprintOf('backup', partsOf(request)));
    const outcomes: RequestOutcome[] = [];
    for (const machine of request.machines) {
      const outcome = known.find(({ part }) => part === machine);
      outcomes.push(outcome ?? (await this.#begin({ machine, ...request.wishes }, key, caller)));
    }
    return outcomes;
  }

  #open(key: RequestKey, fingerprint: string): readonly RequestOutcome[] {
    const answer = this.#options.agent.parts.journal.requests.open(key, fingerprint);
    if (answer.kind === 'known') return answer.outcomes;
    if (answer.kind === 'new') return [];
    throw refusedKey(answer.kind);
  }

  async #begin(request: BackupRequest, key: RequestKey, caller: Caller): Promise<RequestOutcome> {
    const { agent, log, ending } = this.#options;
    if (ending.aborted) throw serviceEnding();
    const { journal, config } = agent.parts;
    const part = { ...key, part: request.machine };
    const template = config.templates.find(({ name }) => name === request.machine);
    let job: JobRow;
    try {
      job = await agent.createBackup({ ...request, template }, { request: part });
    } catch (error) {
      const record = errorRecord(error);
      journal.requests.refuse(part, record);
      return { part: request.machine, jobId: null, error: record };
    }
    const about = { jobId: job.id, machine: job.machineName, caller: caller.name, pid: caller.pid };
    log.info(about, 'backup asked for');
    this.begin(job);
    return { part: request.machine, jobId: job.id, error: null };
  }

  #next(): void {
    const max = this.#options.agent.parts.config.agent.maxParallelMachines;
    for (const job of this.#waiting.values()) {
      if (this.#running.size >= max) return;
      this.#run(job);
    }
  }

  #run(job: JobRow): void {
    this.#waiting.delete(job.id);
    this.#running.add(job.id);
    this.#options.background.run(this.#work(job), { jobId: job.id, machine: job.machineName });
  }

  async #work(job: JobRow): Promise<void> {
    const { agent, signals } = this.#options;
    try {
      const row = await agent.run(job);
      if (row.state === 'finished' && job.kind === 'backup')
        this.#copy(job, { uuid: job.machineUuid, name: job.machineName });
    } finally {
      this.#running.delete(job.id);
      signals.changed(job.id);
      this.#next();
    }
  }

  /** One machine after the other: copies read and write in storages that all of them share. */
  #copy({ id }: JobRow, machine: MachineIdentity): void {
    const { agent, background, makeCopies, signals } = this.#options;
    if (agent.replications.rulesFor(machine.name).length === 0) return;
    const copies: { outcomes: CopyOutcome[]; ended: boolean } = { outcomes: [], ended: false };
    this.#copies.set(id, copies);
    const [oldest] = this.#copies.keys();
    if (this.#copies.size > rememberedMax && oldest !== undefined) this.#copies.delete(oldest);
    const before = this.#lane;
    const copy = async (): Promise<void> => {
      await before;
      await makeCopies(machine, (outcome) => {
        copies.outcomes.push(outcome);
        signals.changed(id);
      });
      copies.ended = true;
      signals.changed(id);
    };
    this.#lane = copy();
    background.run(this.#lane, { machine: machine.name });
  }

  /** Whether this process has begun a backup that has not come to its last end: another job may take its place. */
  isAtWork(jobId: string): boolean {
    return this.#waiting.has(jobId) || this.#running.has(jobId);
  }

  /** The copies after a backup that this process has made; `undefined` where its policy asks for none. */
  copiesOf(jobId: string): CopiesOfBackup | undefined {
    return this.#copies.get(jobId);
  }

  /** A backup that was cancelled does not wait for its turn to find that out. */
  letGo(jobId: string): void {
    const job = this.#waiting.get(jobId);
    if (job !== undefined) this.#run(job);
  }

  #cancelWaiting(): void {
    const { agent, log } = this.#options;
    for (const job of this.#waiting.values()) {
      log.warn({ jobId: job.id, machine: job.machineName }, 'job not begun: the service ends');
      try {
        agent.parts.journal.requestCancel(job.id);
      } catch (error) {
        // Nobody catches what a listener throws; it runs to its end then, and the service waits for it.
        log.error({ jobId: job.id, err: error }, 'job could not be cancelled');
      }
      this.#run(job);
    }
  }
}

/** Why a key cannot be used. */
export function refusedKey(kind: 'other' | 'full'): ApiError {
  if (kind === 'other')
    return new ApiError('IDEMPOTENCY_KEY_REUSED', 'this idempotency_key came with another request before', {
      hint: 'give each request a key of its own, such as a new UUID',
    });
  return new ApiError('TOO_MANY_REQUESTS', 'more requests came within a day than are remembered', {
    hint: 'ask for many machines in one request, and not again and again',
    retryable: true,
  });
}

/** The service begins nothing new. */
export function serviceEnding(): ApiError {
  return new ApiError('SERVICE_ENDING', 'the service of this host is being ended', {
    hint: 'again, when it is back: systemctl status stillpoint-agent',
    retryable: true,
  });
}
