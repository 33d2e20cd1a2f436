import * as z from 'zod';
import { storageChoiceSchema } from '../retain/storageChoice.ts';
import { savePlanSchema } from '../snapshot/plan.ts';
import { hookRunsSchema, hooksSchema } from './hookFacts.ts';

/** How a backup is to be made; kept in the journal so that recovery uses the same. */
export const backupSettingsSchema = z.object({
  mode: z.literal('save'),
  modeReason: z.string(),
  /** Names of the storages, in the order in which they are filled. */
  storages: z.array(z.string()).min(1),
  /** Which of them were chosen among the storages of a group. */
  storageChoices: z.array(storageChoiceSchema).default([]),
  /** `null`: `.stillpoint/` beside each image. */
  retainDirectory: z.string().nullable(),
  ramDisk: z.string().nullable(),
  /** Where sockets are made. */
  runDirectory: z.string().default('/run/stillpoint'),
  mergeBandwidthBytesPerSecond: z.number().nonnegative(),
  readBandwidthBytesPerSecond: z.number().nonnegative(),
  /** Merge a shared base into the machine too. */
  includeSharedBase: z.boolean(),
  saveDeadlineMs: z.number().positive(),
  restoreDeadlineMs: z.number().positive(),
  mergeDeadlineMs: z.number().positive(),
  retainDeadlineMs: z.number().positive(),
  labels: z.record(z.string(), z.string()),
  /** Checkpoints are made, and increments from them. */
  incremental: z.boolean().default(false),
  /** Programs that run before and after it. */
  hooks: hooksSchema.default({}),
  /** A file says while the machine is snapshotted. */
  monitoringMarker: z.boolean().default(false),
});

export type BackupSettings = z.infer<typeof backupSettingsSchema>;

export const errorRecordSchema = z.object({
  code: z.string(),
  message: z.string(),
  hint: z.string().optional(),
  retryable: z.boolean(),
});

/** A file in a storage's partial directory. */
export const retainedFileSchema = z.object({
  sizeBytes: z.number(),
  sha256: z.string(),
  owner: z.object({ uid: z.number(), gid: z.number(), mode: z.number() }),
});

/**
 * Everything that a backup job knows and recovery needs. Facts are only ever added; what is absent has not
 * happened, or was not written down before a crash: recovery looks at the world to tell which.
 */
export const backupFactsSchema = z.object({
  backupId: z.uuid(),
  machine: z.object({ uuid: z.string(), name: z.string() }),
  settings: backupSettingsSchema,
  /** The boot of the host in which the job began: after another one nothing runs that we had left running. */
  bootId: z.string(),
  plan: savePlanSchema.optional(),
  /** How the owner had the machine, read before anything of it is changed. */
  before: z
    .object({
      running: z.boolean(),
      autostart: z.boolean(),
      /** Its persistent definition named the end of a chain, which a cold start in the window would obey. */
      definitionCut: z.boolean(),
    })
    .optional(),
  /** The plan's checkpoint may have been made. */
  checkpointBegun: z.boolean().optional(),
  /** Files in place, durable. */
  prepared: z.boolean().optional(),
  pointInTime: z.iso.datetime().optional(),
  pauseMs: z.number().nullable().optional(),
  /** We may have left the vCPUs stopped: restored or started paused, or suspended for a flush. */
  vcpusHeld: z.boolean().optional(),
  /** We stopped the machine ourselves, because it stood on a wrong chain: it must be started again. */
  poweredOff: z.boolean().optional(),
  /** The vCPUs may have run since the restore: the state must never be restored again. */
  resuming: z.boolean().optional(),
  /** The frozen images and the memory state belong together and are a complete T1. */
  frozenPoint: z.boolean().optional(),
  /** libvirt's id of the machine's run in which the merge was made: another run is another QEMU. */
  mergeRun: z.string().optional(),
  /** How often the machine went down during the merge. */
  mergeStops: z.number().optional(),
  /** All images are complete without their frozen images, and durable. */
  flushed: z.boolean().optional(),
  unguarded: z.boolean().optional(),
  /** The machine has its autostart back while the job is parked: it is the owner's to change. */
  guardReleased: z.boolean().optional(),
  /** Inodes of the overlays, by target: an image that is neither one nor the frozen image is somebody else's. */
  overlayInodes: z.record(z.string(), z.string()).optional(),
  /** Nothing of the job is left to use, the machine is as it was: its files may be half removed. */
  undoing: z.boolean().optional(),
  /** Why the machine was left on other images than ours, which its owner has given it. */
  letGo: z.string().optional(),
  /** The job was given up, but the merge must still be brought to its end. */
  givenUp: z.object({ cancelled: z.boolean(), error: errorRecordSchema }).optional(),
  /** What stands in each storage's partial directory. */
  retained: z.record(z.string(), z.record(z.string(), retainedFileSchema)).optional(),
  /** The manifest is in place in every storage. */
  committed: z.boolean().optional(),
  hooks: hookRunsSchema.optional(),
  warnings: z.array(z.string()),
});

export type BackupFacts = z.infer<typeof backupFactsSchema>;
