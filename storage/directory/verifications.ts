import { readdir } from 'node:fs/promises';
import { extname, join } from 'node:path';
import * as z from 'zod';
import { copyFileDurable, openRegular } from '../../common/copy.ts';
import { writeFileDurable } from '../../common/files.ts';
import { formatPointInTime } from '../../common/time.ts';
import { type Verification, verificationShape } from '../verification.ts';

const nameForm = /^verified-\d{8}T\d{6}\.\d{3}Z\.json$/;
/** No honest file is larger; of a larger one only the beginning is read, which then is not valid. */
const fileBytesMax = 64 * 1024;

/** Stores a verification beside a backup, with the picture that it names; returns it as it is stored. */
export async function writeVerification(
  directory: string,
  verification: Omit<Verification, 'picture'>,
  pictureFile: string | null,
): Promise<Verification> {
  const name = `verified-${formatPointInTime(new Date(verification.at))}`;
  const picture = pictureFile === null ? null : `${name}${extname(pictureFile)}`;
  if (pictureFile !== null && picture !== null)
    await copyFileDurable({ from: pictureFile, to: join(directory, picture), mode: 0o600 });
  const stored = verificationShape.parse({ ...verification, picture });
  await writeFileDurable(join(directory, `${name}.json`), `${JSON.stringify(stored, null, 2)}\n`);
  return stored;
}

/** The last verification of a backup; `null` without one, or when it cannot be read: it is no part of the backup. */
export async function readVerification(directory: string): Promise<Verification | null> {
  try {
    const last = (await readdir(directory))
      .filter((name) => nameForm.test(name))
      .toSorted()
      .at(-1);
    return last === undefined ? null : await readOne(join(directory, last));
  } catch (error) {
    // What keeps the directory from being read is told with its manifest.
    if (error instanceof z.ZodError || error instanceof SyntaxError || isSystemError(error)) return null;
    throw error;
  }
}

async function readOne(path: string): Promise<Verification> {
  const file = await openRegular(path);
  try {
    const buffer = Buffer.alloc(fileBytesMax);
    const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
    return verificationShape.parse(JSON.parse(buffer.toString('utf8', 0, bytesRead)));
  } finally {
    await file.close();
  }
}

/** Whether a file could not be read, whatever its content. */
export function isSystemError(error: unknown): boolean {
  return error instanceof Error && 'errno' in error;
}
