import type { DatabaseSync } from 'node:sqlite';

const dayMs = 86_400_000;

/** What the journal remembers of jobs that have ended, so that it does not grow for as long as a host lives. */
export const rememberedJobs = {
  /** All that ended within so long: a controller that was away is still told of them. */
  allMs: 35 * dayMs,
  /** Of each machine so many, the newest, */
  ofMachine: 100,
  /** and nothing that ended before that. */
  longestMs: 400 * dayMs,
} as const;

/**
 * Removes jobs that have ended, with their steps, beyond what is remembered; inside a transaction of the caller. A job
 * that holds its machine stays however old it is: somebody has yet to decide about it.
 * @param limit so many at the most: a transaction holds up everything else
 * @returns how many went
 */
export function forgetOldJobs(db: DatabaseSync, nowMs: number, limit: number): number {
  const { allMs, ofMachine, longestMs } = rememberedJobs;
  const { changes } = db
    .prepare(
      // Ids are in the order of their making.
      `DELETE FROM jobs WHERE id IN (
         SELECT id FROM (
           SELECT id, finished_at_ms, ROW_NUMBER() OVER (PARTITION BY machine_uuid ORDER BY id DESC) AS place
           FROM jobs WHERE holds_machine = 0 AND finished_at_ms IS NOT NULL
         ) WHERE finished_at_ms < ? AND (place > ? OR finished_at_ms < ?) ORDER BY id LIMIT ?)`,
    )
    .run(nowMs - allMs, ofMachine, nowMs - longestMs, limit);
  return Number(changes);
}
