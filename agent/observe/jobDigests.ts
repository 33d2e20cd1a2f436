import * as z from 'zod';
import type { ErrorRecord } from '../../common/errors.ts';
import type { JobRow } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';

/** What there is to tell of a backup job that has ended. */
export interface BackupDigest {
  readonly jobId: string;
  readonly machineUuid: string;
  readonly state: 'finished' | 'failed' | 'cancelled';
  readonly error: ErrorRecord | null;
  readonly createdAtMs: number;
  readonly endedAtMs: number;
  /** Names of the storages that it wrote to. */
  readonly storages: readonly string[];
  /** T1; null: it did not come so far. */
  readonly pointInTimeMs: number | null;
  /** null: the machine did not stand still. */
  readonly pauseMs: number | null;
  readonly steps: readonly { readonly name: string; readonly durationMs: number }[];
  /** Where it worked beside the images. */
  readonly workDirectories: readonly string[];
}

/** The newest backups of a machine, as the journal has them. */
export interface BackupHistory {
  /** However it ended. */
  readonly last: BackupDigest;
  /** Those that succeeded, newest first. */
  readonly succeeded: readonly BackupDigest[];
}

/** Of jobs that succeeded so many are looked at for each machine: they may have gone into different storages. */
const succeededMax = 4;

/** The part of a backup's record that all its kinds have in common. */
const recordSchema = z.object({
  settings: z.object({ storages: z.array(z.string()) }),
  pointInTime: z.iso.datetime().optional(),
  pauseMs: z.number().nullish(),
  plan: z.object({ workDirectories: z.array(z.string()) }).optional(),
});

/**
 * The newest backups of all machines, from the journal. A job that has ended is read once; what is asked of the
 * journal after that are ids.
 */
export class JobDigests {
  readonly #journal: Journal;
  #known = new Map<string, BackupDigest>();

  constructor(journal: Journal) {
    this.#journal = journal;
  }

  /** By UUID of the machine. @throws what SQLite throws for a journal that cannot be read */
  histories(): ReadonlyMap<string, BackupHistory> {
    const kind = 'backup';
    const ended = ['finished', 'failed', 'cancelled'] as const;
    const newest = this.#journal.newestOfMachines({ kind, states: ended, perMachine: 1 });
    const succeeded = this.#journal.newestOfMachines({
      kind,
      states: ['finished'],
      perMachine: succeededMax,
    });
    const digests = this.#read(new Set([...newest, ...succeeded]));
    const histories = new Map<string, BackupHistory>();
    for (const id of newest) {
      const last = digests.get(id);
      if (last !== undefined) histories.set(last.machineUuid, { last, succeeded: [] });
    }
    for (const id of succeeded) {
      const digest = digests.get(id);
      const history = digest === undefined ? undefined : histories.get(digest.machineUuid);
      if (digest === undefined || history === undefined) continue;
      histories.set(digest.machineUuid, { ...history, succeeded: [...history.succeeded, digest] });
    }
    return histories;
  }

  /** Keeps what is asked for again, and nothing else. */
  #read(ids: ReadonlySet<string>): ReadonlyMap<string, BackupDigest> {
    const digests = new Map<string, BackupDigest>();
    for (const id of ids) {
      const digest = this.#known.get(id) ?? digestOf(this.#journal, this.#journal.get(id));
      if (digest !== undefined) digests.set(id, digest);
    }
    // One that is parked can still end otherwise.
    this.#known = new Map([...digests].filter(([, { state }]) => state === 'finished'));
    return digests;
  }
}

/** `undefined`: it has not ended. */
function digestOf(journal: Journal, row: JobRow): BackupDigest | undefined {
  const { id: jobId, machineUuid, state, error, createdAtMs, updatedAtMs, finishedAtMs } = row;
  if (state !== 'finished' && state !== 'failed' && state !== 'cancelled') return undefined;
  const record = recordSchema.safeParse(row.record).data;
  const { pointInTime, pauseMs = null } = record ?? {};
  const steps = journal.steps(jobId).flatMap(({ name, status, durationMs }) => {
    return status === 'done' && durationMs !== null ? [{ name, durationMs }] : [];
  });
  return {
    jobId,
    machineUuid,
    state,
    error,
    createdAtMs,
    endedAtMs: finishedAtMs ?? updatedAtMs,
    storages: record?.settings.storages ?? [],
    pointInTimeMs: pointInTime === undefined ? null : Date.parse(pointInTime),
    pauseMs,
    steps,
    workDirectories: record?.plan?.workDirectories ?? [],
  };
}
