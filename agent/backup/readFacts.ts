import * as z from 'zod';
import { readPlanSchema } from '../snapshot/readPlan.ts';
import { backupSettingsSchema, errorRecordSchema, retainedFileSchema } from './facts.ts';
import { groupSchema } from './group.ts';
import { hookRunsSchema } from './hookFacts.ts';

/** How a `disk` or `offline` backup is to be made. */
export const readSettingsSchema = backupSettingsSchema.extend({
  mode: z.enum(['disk', 'offline']),
  /** The machines whose backups have the same T1. */
  group: groupSchema.optional(),
  /** Its image, when no machine is backed up but a template; the facts' `machine` stands for it. */
  template: z.object({ image: z.string() }).optional(),
  /** Where the socket of QEMU's exports is made. */
  runDirectory: z.string(),
  /** Whether the guest's agent freezes the file systems at T1, and how long it may take for that. */
  freeze: z
    .object({ policy: z.enum(['auto', 'never', 'required']), deadlineMs: z.number().positive() })
    .default({ policy: 'never', deadlineMs: 1 }),
  /** Why everything is read in full all the same. */
  rereadReason: z.string().nullable(),
});

export type ReadSettings = z.infer<typeof readSettingsSchema>;

/** Everything that a job knows that reads volumes where they are, and that recovery needs. Facts are only added. */
export const readFactsSchema = z.object({
  backupId: z.uuid(),
  machine: z.object({ uuid: z.string(), name: z.string() }),
  settings: readSettingsSchema,
  bootId: z.string(),
  plan: readPlanSchema.optional(),
  /** How the owner had the machine at T1. */
  before: z.object({ running: z.boolean(), autostart: z.boolean() }).optional(),
  /** QEMU may be serving its volumes for us. */
  begun: z.boolean().optional(),
  /** The guest's file systems may be frozen by us. */
  frozen: z.boolean().optional(),
  /** Why the job was given up, while it waits for a thaw. */
  givenUp: errorRecordSchema.optional(),
  /** What came of the freeze. */
  freeze: z
    .object({
      consistency: z.enum(['filesystem', 'crash']),
      consistencyReason: z.string(),
      freezeMs: z.number().nonnegative().nullable(),
    })
    .optional(),
  /** A guest that cannot run is waited for, since before or after the job was cancelled. */
  waitsSince: z.enum(['before-cancel', 'after-cancel']).optional(),
  pointInTime: z.iso.datetime().optional(),
  /** The vCPUs may stand still by our doing, until all machines of the group have begun. */
  vcpusHeld: z.boolean().optional(),
  /** How long they did; `null`: not at all. */
  pauseMs: z.number().nonnegative().nullable().optional(),
  /** All that is read stands in the storages' partial directories: T1 is safe, and QEMU is not needed any more. */
  retained: z.record(z.string(), z.record(z.string(), retainedFileSchema)).optional(),
  /** Size of each volume at T1, by target. */
  virtualSizeBytes: z.record(z.string(), z.number()).optional(),
  /** The manifest is in place in every storage. */
  committed: z.boolean().optional(),
  hooks: hookRunsSchema.optional(),
  warnings: z.array(z.string()),
});

export type ReadFacts = z.infer<typeof readFactsSchema>;
