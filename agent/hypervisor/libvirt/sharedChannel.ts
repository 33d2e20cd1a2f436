import type { Channel, OperationArguments, OperationResult } from './channel.ts';
import type { OperationName } from './messages.ts';

/** Who waits to be answered by the child; told whether it is his turn. */
type Waiting = (hasTurn: boolean) => void;

/**
 * A child that somebody keeps for a purpose of his own, and that answers a question now and then: whoever asks takes it,
 * and who keeps it ends it between two questions.
 */
export class SharedChannel {
  readonly #channel: Pick<Channel, 'request' | 'alive' | 'kill' | 'end'>;
  readonly #waiting = new Set<Waiting>();
  #isTaken = false;
  #isRetired = false;

  constructor(channel: Pick<Channel, 'request' | 'alive' | 'kill' | 'end'>) {
    this.#channel = channel;
  }

  /** False as soon as the child has ended or is about to. */
  get alive(): boolean {
    return !this.#isRetired && this.#channel.alive;
  }

  /** Resolves when the child process is gone. */
  get end(): Promise<void> {
    return this.#channel.end;
  }

  /** Waits for its turn: after the questions of others, and for so long at most. */
  async take(patienceMs: number): Promise<boolean> {
    if (!this.alive) return false;
    if (!this.#isTaken) {
      this.#isTaken = true;
      return true;
    }
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#waiting.add(resolve);
    const patience = setTimeout(() => resolve(!this.#waiting.delete(resolve)), patienceMs);
    try {
      return await promise;
    } finally {
      clearTimeout(patience);
    }
  }

  /**
   * For who has its turn.
   * @throws HypervisorError
   */
  request<Name extends OperationName>(
    operation: Name,
    args: OperationArguments<Name>,
    deadlineMs: number,
  ): Promise<OperationResult<Name>> {
    return this.#channel.request(operation, args, deadlineMs);
  }

  /** For who had its turn: it is that of the next. */
  giveBack(): void {
    const [next] = this.#waiting;
    this.#isTaken = next !== undefined;
    if (next === undefined) return;
    this.#waiting.delete(next);
    next(true);
  }

  /** Ends the child after the question that it is about; who waits is told to ask elsewhere. */
  async retire(): Promise<void> {
    this.#isRetired = true;
    const wasTaken = this.#isTaken;
    for (const waiting of this.#waiting) waiting(false);
    this.#waiting.clear();
    if (wasTaken) await new Promise<boolean>((resolve) => this.#waiting.add(resolve));
    this.#channel.kill();
    await this.#channel.end;
  }
}
