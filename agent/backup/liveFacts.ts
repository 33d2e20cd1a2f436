import * as z from 'zod';
import { livePlanSchema } from '../snapshot/livePlan.ts';
import { backupFactsSchema, backupSettingsSchema, retainedFileSchema } from './facts.ts';
import { groupSchema } from './group.ts';
import { hookRunsSchema } from './hookFacts.ts';

/** How a `live` backup is to be made. */
export const liveSettingsSchema = backupSettingsSchema.extend({
  mode: z.literal('live'),
  /** The machines whose backups have the same T1. */
  group: groupSchema.optional(),
  /** Where the sockets of exports are made. */
  runDirectory: z.string(),
  /** How many times the machine's memory its state may become. */
  memoryFactor: z.number().positive(),
  /** How long memory may be written before it counts as not converging. */
  convergeMs: z.number().positive(),
  /** What is done then. */
  whenNotConverging: z.enum(['pause-longer', 'disk', 'fail']),
  /** How long the vCPUs may stop for the rest of the memory, when they may. */
  longestPauseMs: z.number().positive(),
  /** Why everything is read in full all the same. */
  rereadReason: z.string().nullable().default(null),
});

export type LiveSettings = z.infer<typeof liveSettingsSchema>;

const { givenUp } = backupFactsSchema.shape;

/** Everything that a `live` backup job knows and recovery needs. Facts are only ever added. */
export const liveFactsSchema = z.object({
  backupId: z.uuid(),
  machine: z.object({ uuid: z.string(), name: z.string() }),
  settings: liveSettingsSchema,
  bootId: z.string(),
  plan: livePlanSchema.optional(),
  /** How the owner had the machine, read before anything of it is changed. */
  before: z.object({ running: z.boolean(), autostart: z.boolean() }).optional(),
  /** Inodes of the overlays, by target: a file in an overlay's place that is not it is somebody else's. */
  overlayInodes: z.record(z.string(), z.string()).optional(),
  /** The plan's checkpoint may have been made. */
  checkpointBegun: z.boolean().optional(),
  /** The snapshot may have been taken: the overlays may be in use. */
  snapshotBegun: z.boolean().optional(),
  /** All machines of the group have their T1. */
  begunTogether: z.boolean().optional(),
  pointInTime: z.iso.datetime().optional(),
  pauseMs: z.number().nullable().optional(),
  /** Marks of the frozen images just after T1, by target: T1 is complete. */
  frozen: z.record(z.string(), z.string()).optional(),
  /** What stands in each storage's partial directory. */
  retained: z.record(z.string(), z.record(z.string(), retainedFileSchema)).optional(),
  /** The images may have been written to: they are not T1 any more. */
  mergeBegun: z.boolean().optional(),
  /** Recovery has let the persistent definition name the overlays. */
  overlaysNamed: z.boolean().optional(),
  /** We may have stopped the vCPUs: for a pivot, or until the memory of all machines of the group is written. */
  vcpusHeld: z.boolean().optional(),
  /** How often the machine went down during the merge. */
  mergeStops: z.number().optional(),
  /** The machine is back on its images, and nothing needs the overlays. */
  merged: z.boolean().optional(),
  undoing: z.boolean().optional(),
  /** The job was given up, but the merge must still be brought to its end. */
  givenUp,
  /** The manifest is in place in every storage. */
  committed: z.boolean().optional(),
  hooks: hookRunsSchema.optional(),
  warnings: z.array(z.string()),
});

export type LiveFacts = z.infer<typeof liveFactsSchema>;

/** The plan of a job that is past its preflight. */
export function livePlanOf(facts: LiveFacts): z.infer<typeof livePlanSchema> {
  if (facts.plan === undefined) throw new Error('the job has no plan yet');
  return facts.plan;
}
