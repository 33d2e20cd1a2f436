import { randomUUID } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import * as z from 'zod';

/** What the guest's writer holds in memory (answers of `status`, `pause`, `go`, `rate`, `fill`, …). */
export const writerStatus = z.strictObject({
  /** Random for each boot: another one means that the guest has booted cold. */
  runId: z.string(),
  /** First sequence number of this run. */
  firstSequence: z.int(),
  /** Last round that was begun; every disk's own number is the last completed write. */
  sequence: z.int(),
  disks: z.array(z.strictObject({ target: z.string(), sequence: z.int(), ringBlocks: z.int() })),
  paused: z.boolean(),
  /** The guest agent has frozen what it writes to. */
  frozen: z.boolean(),
  rate: z.int(),
  writeErrors: z.int(),
  /** Time since boot as the guest knows it: stands still while the guest does. */
  uptimeMs: z.int(),
  wallMs: z.int(),
  filledMiB: z.int(),
});

export type WriterStatus = z.infer<typeof writerStatus>;

/** What the guest found when it read its disks back and compared them with its memory. */
export const writerVerification = z.strictObject({
  runId: z.string(),
  sequence: z.int(),
  /** Blocks that had to hold a write of this run. */
  checked: z.int(),
  missing: z.int(),
  torn: z.int(),
  /** Blocks with a number that memory does not know yet: disk and memory are from different instants. */
  newer: z.int(),
  readErrors: z.int(),
});

export type WriterVerification = z.infer<typeof writerVerification>;

const refusal = z.strictObject({ error: z.string() });

/**
 * Sends one line to the writer behind a unix socket and returns its answer.
 *
 * @throws Error when none comes within `timeoutMs`, or the writer refuses.
 */
export async function askWriter(socketPath: string, command: string, timeoutMs: number): Promise<unknown> {
  const id = randomUUID().slice(0, 8);
  const socket = connect(socketPath);
  const timer = setTimeout(
    () => socket.destroy(new Error(`no answer to "${command}" in ${timeoutMs} ms`)),
    timeoutMs,
  );
  try {
    socket.write(`${id} ${command}\n`);
    const answer: unknown = JSON.parse(await lineOf(socket, id));
    const refused = refusal.safeParse(answer);
    if (refused.success) throw new Error(`"${command}": ${refused.data.error}`);
    return answer;
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}

/** The rest of the first line that begins with `id`; others are answers that nobody waited for. */
function lineOf(socket: Socket, id: string): Promise<string> {
  return new Promise((resolve, reject) => {
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('the writer hung up')));
    createInterface({ input: socket })
      .on('line', (line) => {
        if (line.startsWith(`${id} `)) resolve(line.slice(id.length + 1));
      })
      // readline repeats the socket's errors, which are reported above
      .on('error', reject);
  });
}
