import * as z from 'zod';
import { plannedExtraSchema } from './extras.ts';
import { volumeReadSchema } from './readPlan.ts';

/** One volume of a `live` backup, with every path that the job will use. */
export const liveVolumeSchema = z.object({
  target: z.string(),
  /** As the machine's definition names it. It is frozen while the overlay is above it, and the image again afterwards. */
  image: z.string(),
  /** The same with symbolic links resolved. */
  file: z.string(),
  format: z.enum(['qcow2', 'raw']),
  /** The prepared empty image that takes the machine's writes from T1 on. */
  overlay: z.string(),
  workDirectory: z.string(),
  /** Paths of the whole chain before the backup, top first. */
  chain: z.array(z.string()).min(1),
  /** The image is a file that can be copied as it stands: qcow2, over nothing, without bitmaps but ours. */
  copyable: z.boolean(),
  /** QEMU can keep the bitmap of a checkpoint in it. */
  keepsBitmaps: z.boolean().default(false),
  /** Of a qcow2 image; a change may have to be taken for one of the whole cluster. */
  clusterBytes: z.number().optional(),
  /** By storage. */
  reads: z.record(z.string(), volumeReadSchema).default({}),
  /** The oldest checkpoint that a storage needs the changes since; `null`: none of them needs any. */
  since: z.string().nullable().default(null),
  virtualSizeBytes: z.number(),
  /** What a copy of the volume takes. */
  allocatedBytes: z.number(),
  /** Owner, group and mode of the image while no QEMU has it. */
  owner: z.object({ uid: z.number(), gid: z.number(), mode: z.number() }),
});

/** What a `live` backup is going to do, and with what; made by preflight, kept in the journal. */
export const livePlanSchema = z.object({
  machine: z.object({ uuid: z.string(), name: z.string() }),
  host: z.object({ name: z.string(), libvirt: z.string(), qemu: z.string() }),
  mode: z.literal('live'),
  modeReason: z.string(),
  /** The memory state may become this large: beyond it its writing is ended. */
  memoryBytes: z.number(),
  /** Beyond this the memory counts as not converging. */
  convergeBytes: z.number(),
  /** Marks T1 for the next increments; it is made just before T1. `null` when none is made. */
  checkpoint: z.string().nullable().default(null),
  /** What libvirt writes. */
  stateFile: z.string(),
  stateOnRamDisk: z.boolean(),
  /** Where the memory state goes once it is written; `null`: it stays where it is. */
  stowedStateFile: z.string().nullable(),
  nvram: z.object({ source: z.string(), file: z.string() }).nullable(),
  extras: z.array(plannedExtraSchema).default([]),
  volumes: z.array(liveVolumeSchema).min(1),
  /** Directories of ours that are removed at the end; the definition waits in the first. */
  workDirectories: z.array(z.string()).min(1),
  warnings: z.array(z.string()),
});

export type LiveVolume = z.infer<typeof liveVolumeSchema>;
export type LivePlan = z.infer<typeof livePlanSchema>;
