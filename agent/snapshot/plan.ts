import * as z from 'zod';
import { plannedExtraSchema } from './extras.ts';

const backing = z.object({ path: z.string(), format: z.string() });

/** One volume of a planned backup, with every path that the job will use. */
export const plannedVolumeSchema = z.object({
  target: z.string(),
  /** As the machine's definition names it. */
  image: z.string(),
  /** The same with symbolic links resolved: what is renamed. */
  file: z.string(),
  /** The work directory's second name for the image; becomes the frozen image when the overlay replaces it. */
  frozen: z.string(),
  /** The prepared empty image that is renamed over `file`. */
  overlay: z.string(),
  workDirectory: z.string(),
  /** What the image already stands on (a template); stays outside the merge unless told otherwise. */
  base: backing.nullable(),
  /** Paths of the whole chain before the backup, top first. */
  chain: z.array(z.string()),
  virtualSizeBytes: z.number(),
  /** Cluster size and the like, for the overlay that becomes the machine's image. */
  layout: z.array(z.string()),
  /**
   * Owner of the image while no QEMU has it, where libvirt remembers one. libvirt forgets it when its daemon was
   * started again while the machine ran, and leaves the image to root (docs/BEHAVIOUR.md).
   */
  owner: z.object({ uid: z.number(), gid: z.number() }).nullable(),
  /** What the merge must at most copy, and what a copy of the image takes. */
  allocatedBytes: z.number(),
  /** QEMU can keep the bitmap of a checkpoint in the image. */
  keepsBitmaps: z.boolean().default(false),
});

/** What a `save` backup is going to do, and with what; made by preflight, kept in the journal. */
export const savePlanSchema = z.object({
  machine: z.object({ uuid: z.string(), name: z.string() }),
  host: z.object({ name: z.string(), libvirt: z.string(), qemu: z.string() }),
  mode: z.literal('save'),
  modeReason: z.string(),
  memoryBytes: z.number(),
  /** What libvirt writes. */
  stateFile: z.string(),
  stateOnRamDisk: z.boolean(),
  /** Where the memory state goes once the machine runs again; `null`: it stays where it is. */
  stowedStateFile: z.string().nullable(),
  nvram: z.object({ source: z.string(), file: z.string() }).nullable(),
  extras: z.array(plannedExtraSchema).default([]),
  /** Marks T1 for the next increments; `null` when none is made. */
  checkpoint: z.string().nullable().default(null),
  volumes: z.array(plannedVolumeSchema).min(1),
  /** Directories of ours that are removed at the end. */
  workDirectories: z.array(z.string()),
  warnings: z.array(z.string()),
});

export type PlannedVolume = z.infer<typeof plannedVolumeSchema>;
export type SavePlan = z.infer<typeof savePlanSchema>;

/** What a merge needs to know of a machine. */
export type MergePlan = Pick<SavePlan, 'machine' | 'volumes'>;

/** The chain that a volume must have between the swap and the merge: image, frozen image, what was below. */
export function expectedChain(volume: PlannedVolume): readonly string[] {
  return [volume.image, volume.frozen, ...volume.chain.slice(1)];
}
