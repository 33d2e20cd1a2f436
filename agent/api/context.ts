import type { Logger } from '../../common/log.ts';
import type { Agent } from '../agent.ts';
import type { Background } from './background.ts';
import type { Caller } from './caller.ts';
import type { HostEvents } from './hostEvents.ts';
import type { JobSignals } from './jobSignals.ts';
import type { PushedPolicies } from './pushedPolicies.ts';
import type { StartedBackups } from './startedBackups.ts';

/** What every call of the API works with; one of a service, whoever its callers are. */
export interface ApiContext {
  readonly agent: Agent;
  readonly log: Logger;
  readonly signals: JobSignals;
  readonly pushed: PushedPolicies;
  readonly started: StartedBackups;
  readonly events: HostEvents;
  readonly background: Background;
  readonly startedAtMs: number;
  /** Aborted when nothing new is to be begun. */
  readonly ending: AbortSignal;
  /** Aborted when streams are to end: nothing is left that they could tell. */
  readonly closing: AbortSignal;
}

/** One call of somebody. */
export interface ApiCall {
  readonly caller: Caller;
  /** Aborted when nobody waits for the answer any more, and when streams are to end. */
  readonly signal: AbortSignal;
}
