import * as z from 'zod';

/** What `radosgwKeeper.ts` answers, as one line of JSON: how the server is reached, or why not. */
export const radosgwAnswer = z.union([
  z.strictObject({
    endpoint: z.string(),
    /** Buckets stand before it, if a name server (or a test) makes it an address. */
    dnsName: z.string(),
    accessKeyId: z.string(),
    secretAccessKey: z.string(),
  }),
  z.strictObject({ error: z.string() }),
]);

export type RadosgwAnswer = z.infer<typeof radosgwAnswer>;
