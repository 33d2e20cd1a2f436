import * as z from 'zod';
import { absolutePath } from './path.ts';

/** `agent.delegatedRestore`. */
export const delegatedRestore = z
  .strictObject({
    directories: z
      .array(absolutePath)
      .default([])
      .describe(
        'Everything that such a restore puts in place must lie in one of these; none: nothing may be restored.',
      ),
    inPlace: z
      .boolean()
      .default(false)
      .describe('Whether it may replace what is there: a machine, or a file.'),
  })
  .prefault({})
  .describe(
    'What a controller, and members of socketGroup, may restore through the API; root may everything.',
  );

/** What others than root may restore. */
export type DelegatedRestore = z.output<typeof delegatedRestore>;
