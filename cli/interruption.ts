import type { Journal } from '../agent/jobs/journal.ts';
import type { Terminal } from './terminal.ts';

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * What a signal does while machines are being worked on: it asks the jobs of this process to end, through the
 * journal like any other cancel, and the process stays until they have. Never leaves in the middle.
 */
export class Interruption implements Disposable {
  readonly #terminal: Terminal;
  readonly #journal: Journal;
  readonly #controller = new AbortController();
  readonly #onSignal = (): void => this.#interrupt();

  constructor(terminal: Terminal, journal: Journal) {
    this.#terminal = terminal;
    this.#journal = journal;
    for (const signal of signals) process.on(signal, this.#onSignal);
  }

  /** Aborts with the first signal: nothing new is begun after it. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  [Symbol.dispose](): void {
    for (const signal of signals) process.off(signal, this.#onSignal);
  }

  #interrupt(): void {
    const own = this.#journal.holding().filter((job) => job.owner?.pid === process.pid);
    for (const job of own) this.#journal.requestCancel(job.id);
    const names = own.map(({ machineName }) => machineName).join(', ');
    this.#controller.abort();
    if (names !== '')
      this.#terminal.err(`cancelling: bringing ${names} back in order; this must not be cut short`);
  }
}
