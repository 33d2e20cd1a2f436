import { z } from 'zod';

/** One volume of a backup that reads volumes where they are, in modes `disk` and `offline`. */
export const readVolumeSchema = z.object({
  target: z.string(),
  /** As the machine's definition names it. */
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
});

/** What a `disk` or `offline` backup is going to do; made by preflight, kept in the journal. */
export const readPlanSchema = z.object({
  machine: z.object({ uuid: z.string(), name: z.string() }),
  host: z.object({ name: z.string(), libvirt: z.string(), qemu: z.string() }),
  mode: z.enum(['disk', 'offline']),
  modeReason: z.string(),
  consistency: z.enum(['crash', 'offline']),
  /** Where QEMU makes the socket of its exports: a directory of its user; `null` in mode `offline`. */
  socketDirectory: z.string().nullable(),
  nvram: z.object({ source: z.string(), file: z.string() }).nullable(),
  volumes: z.array(readVolumeSchema).min(1),
  /** Directories of ours that are removed at the end; the definition waits in the first. */
  workDirectories: z.array(z.string()).min(1),
  warnings: z.array(z.string()),
});

export type ReadVolume = z.infer<typeof readVolumeSchema>;
export type ReadPlan = z.infer<typeof readPlanSchema>;
