import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Test } from 'tap';

import { newId } from '../../common/ids.ts';
import { Journal } from '../../agent/jobs/journal.ts';
import { currentBootId, type JobOwner, thisOwner } from '../../agent/jobs/owner.ts';

/** An owner that has died: no process has this pid. */
export const deadOwner: JobOwner = { pid: 2 ** 22 + 1, startTicks: 1, bootId: currentBootId() };

/** A new journal, closed and removed with the test; `open` gives another object on the same file. */
export async function journalFor(test: Test): Promise<{
  readonly path: string;
  readonly journal: Journal;
  readonly open: (options?: { readOnly?: boolean }) => Journal;
}> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-journal-'));
  const path = join(directory, 'deep', 'journal.sqlite');
  const opened: Journal[] = [];
  const open = (options?: { readOnly?: boolean }): Journal => {
    const journal = new Journal(path, options);
    opened.push(journal);
    return journal;
  };
  test.teardown(async () => {
    for (const journal of opened) journal[Symbol.dispose]();
    await rm(directory, { recursive: true });
  });
  return { path, journal: open(), open };
}

/** Takes away what version 5 of a journal has and version 4 had not. */
export const undoVersion5 = `
  ALTER TABLE jobs DROP COLUMN pause_requested_at_ms;
  ALTER TABLE jobs DROP COLUMN pause_until_ms;
  ALTER TABLE jobs DROP COLUMN paused_since_ms;
  PRAGMA user_version = 4`;

/** The same of version 4. */
export const undoVersion4 = `
  DROP TRIGGER job_created;
  DROP TRIGGER job_changed;
  DROP TABLE job_changes;
  DROP TABLE journal_identity;
  PRAGMA user_version = 3`;

/** The same of version 3. */
export const undoVersion3 = `
  DROP TABLE request_outcomes;
  DROP TABLE requests;
  DROP INDEX jobs_instead_of;
  ALTER TABLE jobs DROP COLUMN instead_of;
  PRAGMA user_version = 2`;

/** What `Journal.create` needs for a backup of machine `uuid`. */
export function jobOf(uuid: string, owner: JobOwner = thisOwner()) {
  return {
    id: newId(),
    kind: 'backup',
    machineUuid: uuid,
    machineName: `name of ${uuid}`,
    state: 'initialized',
    record: { a: 1 },
    owner,
  } as const;
}
