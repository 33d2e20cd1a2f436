import { join } from 'node:path';
import * as z from 'zod';
import { openRegular } from '../../common/copy.ts';
import { writeFileDurable } from '../../common/files.ts';
import { type DataVerification, dataVerificationShape } from '../verification.ts';
import { dataVerificationFileName } from './names.ts';
import { isSystemError } from './verifications.ts';

/** No honest file is larger; of a larger one only the beginning is read, which then is not valid. */
const fileBytesMax = 4096;

/** Writes down how the reading of a backup came out, in the place of the one before. */
export async function writeDataVerification(
  directory: string,
  verification: DataVerification,
): Promise<void> {
  const text = `${JSON.stringify(dataVerificationShape.parse(verification), null, 2)}\n`;
  await writeFileDurable(join(directory, dataVerificationFileName), text);
}

/** How the last reading came out; `null` without one, or when it cannot be read: it is no part of the backup. */
export async function readDataVerification(directory: string): Promise<DataVerification | null> {
  try {
    const file = await openRegular(join(directory, dataVerificationFileName));
    try {
      const buffer = Buffer.alloc(fileBytesMax);
      const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
      return dataVerificationShape.parse(JSON.parse(buffer.toString('utf8', 0, bytesRead)));
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof z.ZodError || error instanceof SyntaxError || isSystemError(error)) return null;
    throw error;
  }
}
