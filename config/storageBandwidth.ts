import * as z from 'zod';

const slowestBytesPerSecond = 512 * 1024;
/** So much may wait for its turn. What takes longer than a storage may be silent would seem to be one that is away. */
const waitingBytes = 128 * 1024 * 1024;

/** What may go to and from a storage. */
export const storageBandwidth = z
  .int('expected a whole number, without a unit')
  .nonnegative()
  .refine(
    (limit) => limit === 0 || limit >= slowestBytesPerSecond,
    `expected 0 or at least ${slowestBytesPerSecond}`,
  )
  .default(0)
  .describe(
    'What backups, copies, restores and verify of one command send there and read from there, in bytes per second; 0 is without limit. Commands that run follow a change.',
  );

/** Refuses a limit at which a storage would seem to be away. */
export function checkBandwidth(
  storage: { readonly bandwidthBytesPerSecond: number; readonly stallSeconds: number },
  context: z.RefinementCtx,
): void {
  const { bandwidthBytesPerSecond: limit, stallSeconds } = storage;
  const slowest = Math.ceil(waitingBytes / stallSeconds);
  if (limit === 0 || limit >= slowest) return;
  context.addIssue({
    code: 'custom',
    path: ['bandwidthBytesPerSecond'],
    message: `expected 0 or at least ${slowest} with a stallSeconds of ${stallSeconds}`,
  });
}
