import { HypervisorError } from '../../agent/hypervisor/errors.ts';
import type { Meanwhile } from './crashes.ts';
import { refusal, unreachable } from './errors.ts';
import type { Operation } from './faults.ts';
import { SimulatedHypervisor } from './simulatedHypervisor.ts';

/** Calls of one operation that fail: the `nth` of an agent (1 is the first) and those after it. */
export interface Refusal {
  readonly operation: Operation;
  readonly nth: number;
  readonly times: number;
  /** `refused`: nothing is done. `lost`: it is done, and only its answer does not arrive. */
  readonly how: 'refused' | 'lost';
}

/** Counts the calls of an agent and lets some of them fail, which nothing else of the world notices. */
export class Refusals {
  readonly #refusals: readonly Refusal[];
  /** How often each operation was called. */
  readonly calls = new Map<Operation, number>();
  /** Calls that failed. */
  failed = 0;

  constructor(refusals: readonly Refusal[] = []) {
    this.#refusals = refusals;
  }

  readonly listen: Meanwhile = (moment) => {
    const [, when, name] = /^libvirt\/(before|after):(.+)$/.exec(moment) ?? [];
    if (name === undefined || !isOperation(name)) return;
    const operation = name;
    if (when === 'before') this.calls.set(operation, (this.calls.get(operation) ?? 0) + 1);
    const count = this.calls.get(operation) ?? 0;
    for (const { how, nth, times, ...refused } of this.#refusals) {
      if (refused.operation !== operation || (how === 'refused') !== (when === 'before')) continue;
      if (count < nth || count >= nth + times) continue;
      this.failed += 1;
      throw errorFor(operation, how, count);
    }
  };
}

/** What libvirt says changes from one call to the next. */
/** What the simulator names a moment after is an operation of the port. */
function isOperation(name: string): name is Operation {
  return name in SimulatedHypervisor.prototype;
}

function errorFor(operation: Operation, how: Refusal['how'], count: number): HypervisorError {
  if (how === 'lost')
    return new HypervisorError('DEADLINE_EXCEEDED', `${operation} did not answer in time`, {
      retryable: true,
    });
  if (count % 3 === 0) return refusal('timeout', `cannot acquire state change lock (${operation})`);
  return count % 3 === 1 ? refusal('operationFailed', `${operation} failed`) : unreachable();
}

/** Every call that a run made, to fail once, three times, or without an answer; `nthMax` for those that only look again. */
export function everyCall(calls: ReadonlyMap<Operation, number>, nthMax: number): readonly Refusal[] {
  return [...calls].flatMap(([operation, count]) =>
    Array.from({ length: Math.min(count, nthMax) }, (_, index) => index + 1).flatMap(
      (nth): readonly Refusal[] => [
        { operation, nth, times: 1, how: 'refused' },
        { operation, nth, times: 3, how: 'refused' },
        { operation, nth, times: 1, how: 'lost' },
      ],
    ),
  );
}

export function describeRefusal({ operation, nth, times, how }: Refusal): string {
  return `${operation} ${how} at call ${nth}${times === 1 ? '' : `, ${times} times`}`;
}
