import { z } from 'zod';
import { type CallOptions, listAll } from '../backends/backend.ts';
import type { Verification } from '../verification.ts';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError } from './errors.ts';
import { objectBytesMax } from './limits.ts';
import { prefixes, verificationName, verificationOf } from './names.ts';
import { getObject, putObject, type RepositoryContext } from './objects.ts';

const schema = z.object({
  backupId: z.string(),
  at: z.iso.datetime({ precision: 3 }),
  ok: z.boolean(),
  start: z.enum(['resume', 'boot']),
  evidence: z.enum(['serial', 'agent', 'screen']).nullable(),
  detail: z.string(),
  durationMs: z.number().nonnegative(),
  /** What the screen showed, as PNG or PPM in base64. */
  picture: z.string().nullable(),
});

/** What came of starting backups in isolation: the last time of each, by backup. It is no part of a backup. */
export async function listVerifications(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<ReadonlyMap<string, Verification>> {
  const last = new Map<string, number>();
  for (const { name } of await listAll(context.backend, prefixes.verifications, call)) {
    const found = verificationOf(name);
    if (found !== null) last.set(found.backupId, Math.max(found.number, last.get(found.backupId) ?? 0));
  }
  const verifications = new Map<string, Verification>();
  for (const [backupId, number] of last) {
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
  const record = {
    formatVersion: 1,
    backupId,
    ...verification,
    picture: picture?.toString('base64') ?? null,
  };
  const bytes = Buffer.from(JSON.stringify(record));
  for (let number = 1; ; number++) {
    const name = verificationName(backupId, number);
    if ((await context.backend.size(name, call)) !== null) continue;
    if ((await putObject(context, 'verification', name, bytes, call)) !== 'taken')
      return { ...verification, picture: null };
  }
}

/** `null` for what is gone or cannot be read: nothing depends on it. */
async function readRecord(
  context: RepositoryContext,
  backupId: string,
  number: number,
  call: CallOptions,
): Promise<Verification | null> {
  const name = verificationName(backupId, number);
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
