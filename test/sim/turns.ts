import { setImmediate } from 'node:timers/promises';

/*
 * Which call of which client comes next, from a seed: so that a history of several hosts at once can be told again,
 * and so that a host can be suspended for long between any two of its calls. Between two calls our code does nothing
 * that takes real time; as long as that holds, the order of the calls is all the order there is.
 */

interface Waiting {
  readonly client: object;
  readonly proceed: () => void;
}

/** How a history goes, from 0 to 1 and in turns of all clients. */
export interface TurnRules {
  /** How often a client that is about to call is suspended instead. */
  readonly suspended: number;
  /** The longest stretch for which one client goes on while the others stand still. */
  readonly stretchTurns: number;
  readonly suspensionTurns: number;
  /** Called between two turns: nothing happens in the store meanwhile. */
  readonly between?: () => Promise<void>;
}

export class Turns {
  readonly #random: () => number;
  readonly #rules: TurnRules;
  readonly #suspendedUntil = new Map<object, number>();
  #waiting: Waiting[] = [];
  #turn = 0;
  /** Who goes on, and until when. */
  #stretch: { client: object; untilTurn: number } | null = null;

  constructor(random: () => number, rules: TurnRules) {
    this.#random = random;
    this.#rules = rules;
  }

  /** Resolves when it is this client's turn. */
  async take(client: object): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#waiting.push({ client, proceed: resolve });
    });
  }

  /** Gives turns until all of these have ended. Rejects as the first of them that does. */
  async run(actors: readonly Promise<unknown>[]): Promise<void> {
    const state = { open: actors.length };
    const ended = Promise.allSettled(
      actors.map(async (actor) =>
        actor.finally(() => {
          state.open--;
        }),
      ),
    );
    while (state.open > 0) {
      // Everybody goes on to the next call.
      await setImmediate();
      await this.#rules.between?.();
      this.#next()?.proceed();
    }
    for (const result of await ended) if (result.status === 'rejected') throw result.reason;
  }

  #next(): Waiting | undefined {
    this.#turn++;
    for (const { client } of this.#waiting)
      if (this.#random() < this.#rules.suspended / this.#waiting.length)
        this.#suspendedUntil.set(client, this.#turn + this.#random() ** 3 * this.#rules.suspensionTurns);
    const awake = this.#waiting.filter(({ client }) => (this.#suspendedUntil.get(client) ?? 0) <= this.#turn);
    const candidates = awake.length > 0 ? awake : this.#waiting;
    const goingOn = candidates.find(({ client }) => client === this.#stretch?.client);
    const isOver = this.#turn >= (this.#stretch?.untilTurn ?? 0);
    const chosen = isOver ? candidates[Math.floor(this.#random() * candidates.length)] : goingOn;
    if (chosen === undefined) {
      this.#stretch = null;
      return this.#waiting.length === 0 ? undefined : this.#next();
    }
    if (isOver) {
      const turns = this.#random() ** 3 * this.#rules.stretchTurns;
      this.#stretch = { client: chosen.client, untilTurn: this.#turn + turns };
    }
    this.#waiting = this.#waiting.filter((waiting) => waiting !== chosen);
    return chosen;
  }
}
