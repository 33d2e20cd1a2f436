import type { Job } from '../../proto/generated/stillpoint/v1/agent.ts';
import type { JobRow } from '../jobs/job.ts';
import type { Journal } from '../jobs/journal.ts';
import { jobMessage, type JobTeller } from './jobMessage.ts';

/** What comes and goes between two looks is among the newest so many jobs. */
const newestCount = 50;

/** As much of an agent as its changes are seen by. */
type ChangeTeller = JobTeller & {
  readonly parts: { readonly journal: Pick<Journal, 'holding' | 'list' | 'find'> };
};

/** Finds out which jobs have another state than at the look before, whichever process works on them. */
export class JobChanges {
  readonly #agent: ChangeTeller;
  #told: Map<string, string> | undefined;

  constructor(agent: ChangeTeller) {
    this.#agent = agent;
  }

  /** Jobs that are new or changed; the first look only takes note. */
  look(): readonly Job[] {
    const { journal } = this.#agent.parts;
    const rows = new Map<string, JobRow>();
    for (const row of [...journal.list({ limit: newestCount }), ...journal.holding()]) rows.set(row.id, row);
    // An old one that was gone on with, and has ended since the last look.
    for (const id of this.#told?.keys() ?? []) {
      const row = rows.get(id) ?? journal.find(id);
      if (row !== undefined) rows.set(id, row);
    }
    const told = new Map<string, string>();
    const changed: Job[] = [];
    for (const row of rows.values()) {
      const job = jobMessage(this.#agent, row);
      const { state, hold, cancelRequested, error, pausedSince } = job;
      const text = [state, hold, cancelRequested, error?.code, pausedSince?.getTime()].join(' ');
      if (this.#told !== undefined && this.#told.get(row.id) !== text) changed.push(job);
      told.set(row.id, text);
    }
    this.#forget(told, rows);
    this.#told = told;
    return changed.toSorted((a, b) => (a.id < b.id ? -1 : 1));
  }

  /** One that has ended and is not among the newest does not come back, but by somebody who takes it up: it holds then. */
  #forget(told: Map<string, string>, rows: ReadonlyMap<string, JobRow>): void {
    const newest = [...rows.values()].toSorted((a, b) => b.createdAtMs - a.createdAtMs).slice(0, newestCount);
    const kept = new Set(newest.map(({ id }) => id));
    for (const [id, row] of rows) if (!row.holdsMachine && !kept.has(id)) told.delete(id);
  }
}
