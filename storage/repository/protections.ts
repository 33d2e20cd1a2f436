import * as z from 'zod';
import { messageOf } from '../../common/errors.ts';
import type { CallOptions } from '../backends/backend.ts';
import type { Protection } from '../storage.ts';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError, type RepositoryErrorCode } from './errors.ts';
import { objectBytesMax } from './limits.ts';
import { recordName } from './names.ts';
import { addRecord, newestNumber, newestNumbers } from './numberedRecords.ts';
import { getObject, type RepositoryContext } from './objects.ts';

const schema = z.object({ backupId: z.string(), protected: z.boolean(), reason: z.string().nullable() });

/** Of a record that is damaged, or of a later version or generation of keys. */
const unreadable: ReadonlySet<RepositoryErrorCode> = new Set(['REPOSITORY_DAMAGED', 'REPOSITORY_TOO_NEW']);

/** Which backups may not be deleted, by id. A record that cannot be read protects as well. */
export async function listProtections(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<ReadonlyMap<string, Protection>> {
  const protections = new Map<string, Protection>();
  for (const [backupId, number] of await newestNumbers(context, 'protections', call)) {
    const protection = await readRecord(context, backupId, number, call);
    if (protection !== null) protections.set(backupId, protection);
  }
  return protections;
}

/** The protection of one backup. */
export async function readProtection(
  context: RepositoryContext,
  backupId: string,
  call: CallOptions = {},
): Promise<Protection | null> {
  const newest = await newestNumber(context, 'protections', backupId, call);
  return newest === 0 ? null : readRecord(context, backupId, newest, call);
}

/** Protects a backup; `null` takes that off. */
export async function writeProtection(
  context: RepositoryContext,
  backupId: string,
  protection: Protection | null,
  call: CallOptions = {},
): Promise<void> {
  const record = { protected: protection !== null, reason: protection?.reason ?? null };
  await addRecord(context, 'protections', backupId, record, call);
}

async function readRecord(
  context: RepositoryContext,
  backupId: string,
  number: number,
  call: CallOptions,
): Promise<Protection | null> {
  const name = recordName('protections', backupId, number);
  try {
    return await readSoundRecord(context, backupId, name, call);
  } catch (error) {
    // Nobody may lose a backup by it; and one record must not hide all backups.
    if (error instanceof RepositoryError && unreadable.has(error.code)) return { reason: messageOf(error) };
    throw error;
  }
}

async function readSoundRecord(
  context: RepositoryContext,
  backupId: string,
  name: string,
  call: CallOptions,
): Promise<Protection | null> {
  const object = await getObject(context, name, ['protection'], call);
  if (object === null) return null;
  const record = parseDocument(object.content, name, { schema, version: 1, bytesMax: objectBytesMax });
  if (record.backupId !== backupId) throw damaged(name, 'it is the protection of another backup');
  return record.protected ? { reason: record.reason } : null;
}
