import { type CallOptions, listAll } from '../backends/backend.ts';
import { damaged } from './errors.ts';
import { type NumberedKind, numberedRecordOf, prefixes, recordName } from './names.ts';
import { putObject, type RepositoryContext } from './objects.ts';

/*
 * What changes about a backup after its commit. Nothing that is stored is ever changed: of the records of a backup,
 * numbered from 1 on, the newest counts.
 */

/** Nobody says more about one backup. */
const recordsMax = 10_000;

const typeOf = { protections: 'protection', verifications: 'verification', readings: 'reading' } as const;

/** The newest number of each backup that has records, by backup. */
export function newestNumbers(
  context: RepositoryContext,
  kind: NumberedKind,
  call: CallOptions = {},
): Promise<ReadonlyMap<string, number>> {
  return listedNumbers(context, kind, prefixes[kind], call);
}

/**
 * The number of the newest record of a backup, 0 where there is none: the highest that a listing shows, and from there
 * on found by asking for names. A listing may be stale, and a record that got lost must not hide those behind it.
 */
export async function newestNumber(
  context: RepositoryContext,
  kind: NumberedKind,
  backupId: string,
  call: CallOptions = {},
): Promise<number> {
  const listed = await listedNumbers(context, kind, `${prefixes[kind]}${backupId}/`, call);
  const isThere = async (number: number): Promise<boolean> =>
    (await context.backend.size(recordName(kind, backupId, number), call)) !== null;
  let newest = listed.get(backupId) ?? 0;
  while (newest < recordsMax && (await isThere(newest + 1))) newest++;
  return newest;
}

async function listedNumbers(
  { backend }: RepositoryContext,
  kind: NumberedKind,
  prefix: string,
  call: CallOptions,
): Promise<ReadonlyMap<string, number>> {
  const newest = new Map<string, number>();
  for (const { name } of await listAll(backend, prefix, call)) {
    const found = numberedRecordOf(name, kind);
    if (found !== null && found.number <= recordsMax)
      newest.set(found.backupId, Math.max(found.number, newest.get(found.backupId) ?? 0));
  }
  return newest;
}

/** Adds a record. Where somebody adds one at the same time, ours is the later one. */
export async function addRecord(
  context: RepositoryContext,
  kind: NumberedKind,
  backupId: string,
  content: object,
  call: CallOptions = {},
): Promise<void> {
  const bytes = Buffer.from(JSON.stringify({ formatVersion: 1, backupId, ...content }));
  const newest = await newestNumber(context, kind, backupId, call);
  for (let number = newest + 1; number <= recordsMax; number++)
    if ((await putObject(context, typeOf[kind], recordName(kind, backupId, number), bytes, call)) !== 'taken')
      return;
  throw damaged(`${kind} of backup ${backupId}`, `there are more than ${recordsMax}`);
}

/** Takes every record of a backup away, the newest first: what is left of an interrupted call is what there was before. */
export async function removeRecords(
  context: RepositoryContext,
  kind: NumberedKind,
  backupId: string,
  call: CallOptions = {},
): Promise<void> {
  for (let number = await newestNumber(context, kind, backupId, call); number > 0; number--)
    await context.backend.delete(recordName(kind, backupId, number), call);
}
