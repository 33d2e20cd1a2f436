import { z } from 'zod';

const leastBytes = 1024 * 1024;

/** Who is told what happens on this host. */
export const controllerSchema = z
  .strictObject({
    address: z
      .string()
      .regex(/^(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[1-9]\d{0,4}$/, 'expected HOST:PORT')
      .nullable()
      .default(null)
      .describe('HOST:PORT of the controller; null: the one that this host has joined, if any.'),
    outboxMaxBytes: z
      .int('expected a whole number, without a unit')
      .min(leastBytes, `expected at least ${leastBytes}`)
      .default(64 * leastBytes)
      .describe(
        'What waits to be reported may take so much of stateDir, in bytes; then what counts least is left out first (docs/REPORTS.md).',
      ),
  })
  .prefault({})
  .describe('The controller that is told what happens on this host.');
