import * as z from 'zod';
import type { CallOptions } from '../backends/backend.ts';
import { type DataVerification, dataVerificationShape } from '../verification.ts';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError } from './errors.ts';
import { objectBytesMax } from './limits.ts';
import { recordName } from './names.ts';
import { addRecord, newestNumbers } from './numberedRecords.ts';
import { getObject, type RepositoryContext } from './objects.ts';

const schema = z.object({ ...dataVerificationShape.shape, backupId: z.string() });

/** When every byte of backups was read and compared: the last time of each, by backup. */
export async function listReadings(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<ReadonlyMap<string, DataVerification>> {
  const readings = new Map<string, DataVerification>();
  for (const [backupId, number] of await newestNumbers(context, 'readings', call)) {
    const reading = await readRecord(context, backupId, number, call);
    if (reading !== null) readings.set(backupId, reading);
  }
  return readings;
}

/** Writes down how a reading came out. */
export async function addReading(
  context: RepositoryContext,
  backupId: string,
  { at, ok }: DataVerification,
  call: CallOptions = {},
): Promise<void> {
  await addRecord(context, 'readings', backupId, { at, ok }, call);
}

/** `null` for what is gone or cannot be read: then the backup is read again. */
async function readRecord(
  context: RepositoryContext,
  backupId: string,
  number: number,
  call: CallOptions,
): Promise<DataVerification | null> {
  const name = recordName('readings', backupId, number);
  try {
    const object = await getObject(context, name, ['reading'], call);
    if (object === null) return null;
    const record = parseDocument(object.content, name, { schema, version: 1, bytesMax: objectBytesMax });
    if (record.backupId !== backupId) throw damaged(name, 'it is the reading of another backup');
    return { at: record.at, ok: record.ok };
  } catch (error) {
    if (error instanceof RepositoryError) return null;
    throw error;
  }
}
