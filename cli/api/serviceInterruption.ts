import { errorRecord } from '../../common/errors.ts';
import type { Terminal } from '../terminal.ts';
import type { AgentClient } from './agentClient.ts';

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * What a signal does while the service works for this command: it asks the service to end these jobs, and the command
 * stays until they have.
 */
export class ServiceInterruption implements Disposable {
  readonly #terminal: Terminal;
  readonly #client: Pick<AgentClient, 'cancelJob'>;
  readonly #jobs = new Map<string, string>();
  readonly #onSignal = (): void => void this.#interrupt();
  readonly #controller = new AbortController();

  constructor(terminal: Terminal, client: Pick<AgentClient, 'cancelJob'>) {
    this.#terminal = terminal;
    this.#client = client;
    for (const signal of signals) process.on(signal, this.#onSignal);
  }

  /** Aborts with the first signal. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  [Symbol.dispose](): void {
    for (const signal of signals) process.off(signal, this.#onSignal);
  }

  /** A job that is to end with a signal, also with one that came before it was known. */
  add(jobId: string, machine: string): void {
    this.#jobs.set(jobId, machine);
    if (this.signal.aborted) void this.#cancel(jobId, machine);
  }

  /** The job has ended. */
  delete(jobId: string): void {
    this.#jobs.delete(jobId);
  }

  async #interrupt(): Promise<void> {
    this.#controller.abort();
    if (this.#jobs.size === 0) return;
    const names = [...this.#jobs.values()].join(', ');
    this.#terminal.err(`cancelling: the service brings ${names} back in order`);
    await Promise.all([...this.#jobs].map(([id, machine]) => this.#cancel(id, machine)));
  }

  async #cancel(jobId: string, machine: string): Promise<void> {
    try {
      await this.#client.cancelJob(jobId);
    } catch (error) {
      // One that has ended meanwhile needs no cancel.
      if (errorRecord(error).code !== 'JOB_STATE_INVALID') this.#terminal.error(error, machine);
    }
  }
}
