import { z } from 'zod';
import { type CallOptions, listAll } from '../backends/backend.ts';
import type { Protection } from '../storage.ts';
import { parseDocument } from './document.ts';
import { damaged } from './errors.ts';
import { objectBytesMax } from './limits.ts';
import { prefixes, protectionName, protectionOf } from './names.ts';
import { getObject, putObject, type RepositoryContext } from './objects.ts';

const schema = z.object({ backupId: z.string(), protected: z.boolean(), reason: z.string().nullable() });

/** Nobody protects a backup, and takes that off again, more often. */
const changesMax = 10_000;

/**
 * Which backups may not be deleted, by id. Nothing that is stored is ever changed: the newest of the numbered records
 * of a backup counts.
 */
export async function listProtections(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<ReadonlyMap<string, Protection>> {
  const newest = new Map<string, number>();
  for (const { name } of await listAll(context.backend, prefixes.protections, call)) {
    const found = protectionOf(name);
    if (found !== null) newest.set(found.backupId, Math.max(found.number, newest.get(found.backupId) ?? 0));
  }
  const protections = new Map<string, Protection>();
  for (const [backupId, number] of newest) {
    const protection = await readRecord(context, backupId, number, call);
    if (protection !== null) protections.set(backupId, protection);
  }
  return protections;
}

/** The protection of one backup, found by asking for names: listings may be stale. */
export async function readProtection(
  context: RepositoryContext,
  backupId: string,
  call: CallOptions = {},
): Promise<Protection | null> {
  const count = await countRecords(context, backupId, call);
  return count === 0 ? null : readRecord(context, backupId, count, call);
}

/** Protects a backup; `null` takes that off. */
export async function writeProtection(
  context: RepositoryContext,
  backupId: string,
  protection: Protection | null,
  call: CallOptions = {},
): Promise<void> {
  const record = {
    formatVersion: 1,
    backupId,
    protected: protection !== null,
    reason: protection?.reason ?? null,
  };
  const bytes = Buffer.from(JSON.stringify(record));
  for (let number = (await countRecords(context, backupId, call)) + 1; number <= changesMax; number++) {
    const name = protectionName(backupId, number);
    // Taken: somebody else has changed it at the same time, and ours is the later one.
    if ((await putObject(context, 'protection', name, bytes, call)) !== 'taken') return;
  }
  throw damaged(`the protection of backup ${backupId}`, `it was changed more than ${changesMax} times`);
}

async function countRecords(
  context: RepositoryContext,
  backupId: string,
  call: CallOptions,
): Promise<number> {
  let count = 0;
  while (
    count < changesMax &&
    (await context.backend.size(protectionName(backupId, count + 1), call)) !== null
  )
    count++;
  return count;
}

async function readRecord(
  context: RepositoryContext,
  backupId: string,
  number: number,
  call: CallOptions,
): Promise<Protection | null> {
  const name = protectionName(backupId, number);
  const object = await getObject(context, name, ['protection'], call);
  if (object === null) return null;
  const record = parseDocument(object.content, name, { schema, version: 1, bytesMax: objectBytesMax });
  if (record.backupId !== backupId) throw damaged(name, 'it is the protection of another backup');
  return record.protected ? { reason: record.reason } : null;
}
