import * as z from 'zod';
import { keep } from './keep.ts';

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
    acceptPolicies: z
      .boolean()
      .default(true)
      .describe(
        'Policies that a controller pushes hold for the machines that no rule of these files names; false: none are taken, and those that were do not count.',
      ),
    keepAtLeast: keep
      .nullable()
      .default(null)
      .describe(
        'What `stillpoint prune` leaves in any case of machines with pushed policies, whatever those say. null: as they say.',
      ),
  })
  .prefault({})
  .describe('The controller of this host: what it is told, and what it may say.');
