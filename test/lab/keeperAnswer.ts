import * as z from 'zod';

/** What `keeper.ts` answers, as one line of JSON: the process that holds the mount namespace, or why not. */
export const keeperAnswer = z.union([
  z.strictObject({ holderPid: z.int() }),
  z.strictObject({ error: z.string() }),
]);

export type KeeperAnswer = z.infer<typeof keeperAnswer>;
