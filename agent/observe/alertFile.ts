import { readFile, stat } from 'node:fs/promises';
import * as z from 'zod';
import { isErrno } from '../../common/errors.ts';
import { writeFileDurable } from '../../common/files.ts';
import { alertSchema, noticeSchema } from './alert.ts';

/** A file that is larger is not ours. */
const fileBytesMax = 16 * 1024 * 1024;

/** A notice that a webhook has not taken yet. */
const waitingSchema = z.object({
  notice: noticeSchema,
  attempts: z.number(),
  /** When it is tried next. */
  nextMs: z.number(),
});
export type WaitingNotice = z.infer<typeof waitingSchema>;

const stateSchema = z.object({
  version: z.literal(1),
  /** Alerts that last. */
  open: z.array(alertSchema),
  /** What waits, oldest first, by the id of the webhook. */
  waiting: z.record(z.string(), z.array(waitingSchema)),
});

/** What is kept about alerts over a restart of the service. */
export type AlertState = Omit<z.infer<typeof stateSchema>, 'version'>;

/**
 * Reads what was kept; nothing where there is no such file.
 * @returns null for a file that this version cannot read: what is wrong is then told once more
 */
export async function readAlerts(path: string): Promise<AlertState | null> {
  let text: string;
  try {
    if ((await stat(path)).size > fileBytesMax) return null;
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return { open: [], waiting: {} };
    throw error;
  }
  try {
    return stateSchema.safeParse(JSON.parse(text)).data ?? null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** Keeps it, durably. */
export function writeAlerts(path: string, state: AlertState): Promise<void> {
  return writeFileDurable(path, `${JSON.stringify({ version: 1, ...state })}\n`);
}
