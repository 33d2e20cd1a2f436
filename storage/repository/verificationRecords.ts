import * as z from 'zod';
import type { CallOptions } from '../backends/backend.ts';
import { type Verification, verificationShape } from '../verification.ts';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError } from './errors.ts';
import { objectBytesMax } from './limits.ts';
import { recordName } from './names.ts';
import { addRecord, newestNumbers } from './numberedRecords.ts';
import { getObject, type RepositoryContext } from './objects.ts';

const schema = z.object({
  ...verificationShape.omit({ picture: true }).shape,
  backupId: z.string(),
  /** What the screen showed, as PNG or PPM in base64. */
  picture: z.string().nullable(),
});

/** What came of starting backups in isolation: the last time of each, by backup. It is no part of a backup. */
export async function listVerifications(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<ReadonlyMap<string, Verification>> {
  const verifications = new Map<string, Verification>();
  for (const [backupId, number] of await newestNumbers(context, 'verifications', call)) {
    const verification = await readRecord(context, backupId, number, call);
    if (verification !== null) verifications.set(backupId, verification);
  }
  return verifications;
}

/** Stores a verification, with the picture of its screen. */
export async function addVerification(
  context: RepositoryContext,
  backupId: string,
  verification: Omit<Verification, 'picture'>,
  picture: Buffer | null,
  call: CallOptions = {},
): Promise<Verification> {
  const record = { ...verification, picture: picture?.toString('base64') ?? null };
  await addRecord(context, 'verifications', backupId, record, call);
  return { ...verification, picture: null };
}

/** `null` for what is gone or cannot be read: nothing depends on it. */
async function readRecord(
  context: RepositoryContext,
  backupId: string,
  number: number,
  call: CallOptions,
): Promise<Verification | null> {
  const name = recordName('verifications', backupId, number);
  try {
    const object = await getObject(context, name, ['verification'], call);
    if (object === null) return null;
    const record = parseDocument(object.content, name, { schema, version: 1, bytesMax: objectBytesMax });
    if (record.backupId !== backupId) throw damaged(name, 'it is the verification of another backup');
    const { at, ok, start, evidence, detail, durationMs } = record;
    return { at, ok, start, evidence, detail, durationMs, picture: null };
  } catch (error) {
    if (error instanceof RepositoryError) return null;
    throw error;
  }
}
