import * as z from 'zod';
import { plannedExtraSchema } from './extras.ts';

/** How a volume comes into one storage. */
export const volumeReadSchema = z.union([
  z.object({
    /** Id of the storage's backup that the increment starts from. */
    parent: z.string(),
    /** That marks the parent's T1. */
    checkpoint: z.string(),
  }),
  z.object({
    /** Why it must be read in full. */
    reason: z.string(),
  }),
]);

/** One volume of a backup that reads volumes where they are, in modes `disk` and `offline`. */
export const readVolumeSchema = z.object({
  target: z.string(),
  /** What the image is; a network volume is read through QEMU only. */
  kind: z.enum(['file', 'block', 'network']).default('file'),
  /** The image is encrypted: it is stored as it stands. */
  encrypted: z.boolean().default(false),
  /** As the machine's definition names it, or its pool; the address of a network volume. */
  image: z.string(),
  /** The same with symbolic links resolved. */
  file: z.string(),
  format: z.enum(['qcow2', 'raw']),
  virtualSizeBytes: z.number(),
  allocatedBytes: z.number(),
  /** Owner, group and mode of the image while no QEMU has it. */
  owner: z.object({ uid: z.number(), gid: z.number(), mode: z.number() }),
  /** Takes what the guest overwrites while the volume is read; `null` in mode `offline`. */
  scratch: z.string().nullable(),
  /** QEMU can keep the bitmap of a checkpoint in it. */
  keepsBitmaps: z.boolean(),
  /** Of a qcow2 image; a change may have to be taken for one of the whole cluster. */
  clusterBytes: z.number().optional(),
  /** By storage. */
  reads: z.record(z.string(), volumeReadSchema),
  /** The oldest checkpoint that a storage needs the changes since; `null`: none of them needs any. */
  since: z.string().nullable(),
});

/** What a `disk` or `offline` backup is going to do; made by preflight, kept in the journal. */
export const readPlanSchema = z.object({
  machine: z.object({ uuid: z.string(), name: z.string() }),
  host: z.object({ name: z.string(), libvirt: z.string(), qemu: z.string() }),
  mode: z.enum(['disk', 'offline']),
  modeReason: z.string(),
  consistency: z.enum(['crash', 'offline']),
  /** No machine: an image that nobody runs. */
  template: z.boolean().optional(),
  /** Marks T1 for the next increments; `null` when none is made. */
  checkpoint: z.string().nullable(),
  /** Where QEMU makes the socket of its exports: a directory of its user; `null` in mode `offline`. */
  socketDirectory: z.string().nullable(),
  nvram: z.object({ source: z.string(), file: z.string() }).nullable(),
  extras: z.array(plannedExtraSchema).default([]),
  volumes: z.array(readVolumeSchema).min(1),
  /** Directories of ours that are removed at the end; the definition waits in the first. */
  workDirectories: z.array(z.string()).min(1),
  warnings: z.array(z.string()),
});

export type ReadVolume = z.infer<typeof readVolumeSchema>;
export type VolumeRead = z.infer<typeof volumeReadSchema>;
export type ReadPlan = z.infer<typeof readPlanSchema>;
