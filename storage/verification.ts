import * as z from 'zod';

/** What came of starting a backup in isolation; stored beside it, and no part of it. */
export const verificationShape = z.strictObject({
  at: z.iso.datetime({ precision: 3 }),
  ok: z.boolean(),
  start: z.enum(['resume', 'boot']),
  /** What was seen of the guest; `null`: nothing that proves that it works. */
  evidence: z.enum(['serial', 'agent', 'screen']).nullable(),
  /** For people. */
  detail: z.string(),
  durationMs: z.number().nonnegative(),
  /** File beside it with what the screen showed at the end. */
  picture: z.string().nullable(),
});

export type Verification = Readonly<z.infer<typeof verificationShape>>;

/** When every byte of a backup was last read and compared, and how that came out; stored beside it. */
export const dataVerificationShape = z.object({ at: z.iso.datetime({ precision: 3 }), ok: z.boolean() });

export type DataVerification = Readonly<z.infer<typeof dataVerificationShape>>;
