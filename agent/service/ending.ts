import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from '../../common/log.ts';
import type { Agent } from '../agent.ts';

/** How often is looked whether the jobs are where they may be left. */
const pollMs = 100;
/** Jobs that could be left get so long to come to their end all the same. */
const graceMs = 10_000;

export interface EndingService {
  readonly agent: Agent;
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** Ends the process, before anything else happens in it. */
  readonly leave: () => void;
}

/**
 * Brings the jobs of the service to rest after its signal: what can be given up is, what must not be cut short is waited
 * for, and what the next process can go on with is left where it is, by ending this process at a moment that is right
 * for all of them. How long that may take is for the service manager to say: whoever is killed is recovered.
 * @param parts ends when nothing of the service goes on
 * @returns when `parts` has ended
 */
export async function endInOrder(
  { agent, log, signal, leave }: EndingService,
  parts: Promise<unknown>,
): Promise<void> {
  const { engine } = agent.parts;
  const over = parts.then(() => true);
  await Promise.race([over, aborted(signal)]);
  engine.stop();
  let isOver = await Promise.race([over, sleep(graceMs, false, { ref: false })]);
  while (!isOver && !mayLeave(engine)) isOver = await Promise.race([over, sleep(pollMs, false)]);
  if (isOver) return;
  // Nothing may happen between the look and the end: a moment later the vCPUs may stand still.
  for (const jobId of engine.atWork) log.warn({ jobId }, 'job is left to the next process of the service');
  leave();
}

/** Without a job there is nothing to leave: what goes on is about to end. */
function mayLeave({ atWork, canBeLeft }: Agent['parts']['engine']): boolean {
  return atWork.length > 0 && canBeLeft;
}

/** Resolves with the abort of a signal. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
