import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import type { JobRow } from './job.ts';
import type { Journal } from './journal.ts';
import { isOwnerAlive } from './owner.ts';

/** Other processes tell of the end of their jobs through the journal only. */
const pollMs = 250;

/** What the record of a backup, or of a copy, says of where it goes, and with whom. */
const usesSchema = z.object({
  settings: z.object({
    storages: z.array(z.string()),
    group: z.object({ id: z.string() }).optional(),
  }),
});

/**
 * Waits until fewer jobs than a storage allows at a time have come before this one and still go on, in whatever
 * process: their rows in the journal are the queue, and it is served in the order in which they were written down. The
 * machines of a group count as one, because they cannot wait for each other. A cancelled job waits no longer.
 * @param limitOf how many jobs may use a storage at a time; `undefined`: any number
 * @param stop ends the waiting: the process is to end, and the job with it
 */
export async function waitForTurn(
  journal: Journal,
  job: JobRow,
  limitOf: (storage: string) => number | undefined,
  stop?: AbortSignal,
): Promise<void> {
  let told: string | undefined;
  for (;;) {
    if (journal.isCancelRequested(job.id) || stop?.aborted === true) return;
    const full = fullStorage(journal.holding(), job, limitOf);
    if (full === undefined) return;
    if (full !== told) {
      const detail = `until storage ${full} has a place for it`;
      journal.publishProgress(job.id, { jobId: job.id, state: job.state, step: 'waits', detail });
      told = full;
    }
    await sleep(pollMs);
  }
}

/** A storage that others use as much as may be, all of whom came before; `rows` in the order in which they came. */
function fullStorage(
  rows: readonly JobRow[],
  job: JobRow,
  limitOf: (storage: string) => number | undefined,
): string | undefined {
  const mine = usesOf(job);
  const earlier = rows.slice(
    0,
    Math.max(
      0,
      // A group has the place of its first member: what was written down between its members comes after all of them.
      rows.findIndex((row) => row.id === job.id || isOfGroup(row, mine.group?.id)),
    ),
  );
  const users = new Map<string, Set<string>>();
  for (const row of earlier) {
    // What is parked, or was left by a dead process, writes nothing.
    if (row.owner === null || !isOwnerAlive(row.owner)) continue;
    const { storages, group } = usesOf(row);
    for (const storage of storages)
      users.set(storage, (users.get(storage) ?? new Set()).add(group?.id ?? row.id));
  }
  return mine.storages.find((storage) => (users.get(storage)?.size ?? 0) >= (limitOf(storage) ?? Infinity));
}

function isOfGroup(row: JobRow, group: string | undefined): boolean {
  return group !== undefined && usesOf(row).group?.id === group;
}

function usesOf(row: JobRow): z.infer<typeof usesSchema>['settings'] {
  if (row.kind !== 'backup' && row.kind !== 'replicate') return { storages: [] };
  return usesSchema.safeParse(row.record).data?.settings ?? { storages: [] };
}
