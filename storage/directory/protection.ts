import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { openRegular } from '../../common/copy.ts';
import { isErrno, messageOf } from '../../common/errors.ts';
import { fsyncDirectory, writeFileDurable } from '../../common/files.ts';
import { protectionReasonLengthMax } from '../protection.ts';
import type { Protection } from '../storage.ts';
import { protectionFileName } from './names.ts';

/** No honest file is larger; of a larger one only the beginning is read, which then is not valid. */
const maxFileBytes = 16 * 1024;

const protectionSchema = z.strictObject({
  /** When it was protected, RFC 3339. */
  at: z.iso.datetime({ precision: 3 }),
  reason: z.string().max(protectionReasonLengthMax).nullable(),
});

/** The protection of a backup's directory, `null` if there is none. What cannot be read protects as well. */
export async function readProtection(directory: string): Promise<Protection | null> {
  try {
    const { reason } = protectionSchema.parse(JSON.parse(await readBeginning(directory)));
    return { reason };
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    const why = error instanceof z.ZodError ? z.prettifyError(error) : messageOf(error);
    return { reason: `${protectionFileName} cannot be read: ${why.replaceAll(/\s+/g, ' ')}` };
  }
}

async function readBeginning(directory: string): Promise<string> {
  const file = await openRegular(join(directory, protectionFileName));
  try {
    const buffer = Buffer.alloc(maxFileBytes);
    const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await file.close();
  }
}

/** Protects a backup, or says anew why; it is on the disk when this returns. */
export async function writeProtection(directory: string, { reason }: Protection): Promise<void> {
  const protection = protectionSchema.parse({ at: new Date().toISOString(), reason });
  const text = `${JSON.stringify(protection, null, 2)}\n`;
  await writeFileDurable(join(directory, protectionFileName), text);
}

/** Takes the protection off; one that is not there is fine. */
export async function removeProtection(directory: string): Promise<void> {
  try {
    await unlink(join(directory, protectionFileName));
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
  }
  await fsyncDirectory(directory);
}
