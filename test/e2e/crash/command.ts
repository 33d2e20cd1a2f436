import * as z from 'zod';

/** What the agent under test is to do: the argument of agent.ts. */
export const commandSchema = z.strictObject({
  config: z.string(),
  action: z.discriminatedUnion('do', [
    z.strictObject({
      do: z.literal('backup'),
      machine: z.string(),
      /** `save` unless told. */
      mode: z.enum(['save', 'disk']).optional(),
    }),
    z.strictObject({
      do: z.literal('restore'),
      backup: z.string(),
      as: z.string().optional(),
      inPlace: z.boolean().optional(),
      safetyCopy: z.boolean().optional(),
      start: z.enum(['resume', 'boot', 'none']).optional(),
      to: z.string().optional(),
    }),
    /** Brings the jobs of dead agents to an end, as every agent does when it starts. */
    z.strictObject({ do: z.literal('recover') }),
    /** What the unit that is ordered before libvirt does. */
    z.strictObject({ do: z.literal('repair-offline') }),
  ]),
  /** Stops at this moment, once, until somebody writes into the named pipe. */
  halt: z.strictObject({ point: z.string(), gate: z.string() }).optional(),
});

export type Command = z.infer<typeof commandSchema>;
export type Action = Command['action'];

/** What it prints, one JSON object a line. */
export const lineSchema = z.union([
  /** A named moment was reached. */
  z.strictObject({ point: z.string() }),
  z.strictObject({ halted: z.string() }),
  z.strictObject({
    job: z.strictObject({
      id: z.string(),
      kind: z.string(),
      state: z.string(),
      code: z.string().nullable(),
      message: z.string().nullable(),
      holdsMachine: z.boolean(),
    }),
  }),
  z.strictObject({ repaired: z.array(z.strictObject({ image: z.string(), action: z.string() })) }),
]);

export type Line = z.infer<typeof lineSchema>;
export type EndedJob = Extract<Line, { readonly job: unknown }>['job'];
