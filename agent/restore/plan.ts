import * as z from 'zod';

const artifact = z.object({ path: z.string(), sizeBytes: z.number(), sha256: z.string() });

/** Where a server finds a stream of a repository. */
export const servedStreamSchema = z.object({ config: z.string(), storage: z.string(), root: z.string() });

export const restoredVolumeSchema = z.object({
  target: z.string(),
  /** Of the stored file. */
  format: z.enum(['qcow2', 'raw']),
  /** The machine opens it as raw: the checked copy is written anew as that. */
  asRaw: z.boolean().default(false),
  artifact,
  /** It is stored as it stood. */
  encrypted: z.boolean().default(false),
  /** The definition leads to the image by its storage pool, and goes on doing so. */
  keepsPool: z.boolean().default(false),
  /** Where the machine expects it. */
  image: z.string(),
  /** The same with symbolic links resolved, where it exists: what is replaced. */
  file: z.string(),
  workDirectory: z.string(),
  /** The checked copy that is renamed over `image`. */
  staged: z.string(),
  /** Second name of what stood at `image`, until the restored machine has started. */
  kept: z.string(),
  existed: z.boolean(),
  /** Of an instant restore: where the artifact is served, and how the overlay that is staged names it. */
  served: z
    .object({
      socket: z.string(),
      url: z.string(),
      virtualSizeBytes: z.number(),
      /** Of a repository: where the server finds it. */
      repository: servedStreamSchema.nullable().default(null),
      /** What the disk says of errors; while it depends on the server they must stop the guest, not reach it. */
      errorPolicies: z.object({ write: z.string().optional(), read: z.string().optional() }),
    })
    .nullable()
    .default(null),
  /** Name that what stood there keeps when the restore has succeeded; `null`: it is removed then. */
  safetyCopy: z.string().nullable().default(null),
  /** What the restored image gets. */
  owner: z.object({ uid: z.number(), gid: z.number(), mode: z.number() }),
  /** Whose the present image is while no QEMU has it, where libvirt remembers that now and may forget it. */
  presentOwner: z.object({ uid: z.number(), gid: z.number() }).nullable(),
});

/** A file that is put in place beside the volumes. */
export const restoredExtraSchema = z.object({
  artifact,
  path: z.string(),
  staged: z.string(),
  kept: z.string(),
  existed: z.boolean(),
  safetyCopy: z.string().nullable(),
  /** Permission bits that it gets; it is root's. */
  mode: z.number(),
});

/** Something that the restore changes or that stands in its way, for the operator to see before it happens. */
export const conflictSchema = z.object({
  kind: z.enum(['machine', 'volumes', 'definition', 'path', 'nvram', 'mac', 'secrets', 'network']),
  message: z.string(),
});

/** What a restore is going to do; shown, confirmed, kept in the journal. */
export const restorePlanSchema = z.object({
  jobId: z.string(),
  backup: z.object({ id: z.string(), storage: z.string(), directory: z.string(), pointInTime: z.string() }),
  kind: z.enum(['in-place', 'new-machine', 'files']),
  /** `volumes`: single volumes; of the machine everything else stays as it is. */
  scope: z.enum(['machine', 'volumes']).default('machine'),
  start: z.enum(['resume', 'boot', 'none']),
  /** The machine starts on overlays over the backup, which is then pulled into them. */
  instant: z.boolean().default(false),
  machine: z.object({ name: z.string(), uuid: z.string() }),
  /** The vCPUs were running at T1. */
  runningAtPoint: z.boolean(),
  volumes: z.array(restoredVolumeSchema).min(1),
  /** The memory state and where its checked copy stands; `null` unless it is resumed (or only files are wanted). */
  memory: z
    .object({
      artifact,
      staged: z.string(),
      /** The definition inside is changed: the machine is another one, or its images stand elsewhere. */
      adapted: z.boolean().default(false),
    })
    .nullable(),
  nvram: z
    .object({
      artifact,
      path: z.string(),
      staged: z.string(),
      kept: z.string(),
      existed: z.boolean(),
      safetyCopy: z.string().nullable().default(null),
    })
    .nullable(),
  /** What else is put in place: a TPM's state, a kernel. */
  extras: z.array(restoredExtraSchema).default([]),
  definition: artifact,
  /** Where the definition that is replaced is kept after the restore has succeeded. It holds secrets. */
  definitionSafetyCopy: z.string().nullable().default(null),
  /** New MAC of each interface, in order; empty unless it becomes a new machine. */
  macs: z.array(z.string()),
  /** Network cards that are connected to another place than at the time of the backup, by the name of the old one. */
  networks: z
    .array(
      z.object({
        from: z.string(),
        to: z.union([
          z.object({ kind: z.enum(['network', 'bridge']), name: z.string() }),
          z.object({ kind: z.literal('none') }),
        ]),
      }),
    )
    .default([]),
  /** A resumed copy keeps its interfaces disconnected: its guest still uses the addresses of the original. */
  linksDown: z.boolean(),
  /** The machine as it is now, if it is there. */
  present: z.object({ running: z.boolean(), autostart: z.boolean() }).nullable(),
  autostart: z.boolean(),
  workDirectories: z.array(z.string()),
  conflicts: z.array(conflictSchema),
});

export type RestorePlan = z.infer<typeof restorePlanSchema>;
export type RestoredExtra = z.infer<typeof restoredExtraSchema>;
export type RestoredVolume = z.infer<typeof restoredVolumeSchema>;
export type Conflict = z.infer<typeof conflictSchema>;

/** Everything that is still there of what a successful restore has replaced. */
export function safetyCopiesOf(plan: RestorePlan): readonly string[] {
  const copies = [
    ...plan.volumes.map(({ safetyCopy }) => safetyCopy),
    plan.nvram?.safetyCopy ?? null,
    ...plan.extras.map(({ safetyCopy }) => safetyCopy),
    plan.definitionSafetyCopy,
  ];
  return copies.filter((copy) => copy !== null);
}

/** What a restore job knows; facts are only added. */
export const restoreFactsSchema = z.object({
  plan: restorePlanSchema,
  restoreDeadlineMs: z.number(),
  /** For the pull of an instant restore. */
  pullDeadlineMs: z.number().default(7 * 24 * 3600 * 1000),
  bootId: z.string(),
  staged: z.boolean().optional(),
  /** What each staged file is known by, by its path: an image that has changed since then was run by somebody. */
  stagedMarks: z.record(z.string(), z.string()).optional(),
  /** Somebody started the machine on the restored disks before we could: it stays as it runs. */
  takenAsItRuns: z.boolean().optional(),
  /** The present machine was stopped, its definition kept; from here a failure puts it back. */
  stopping: z.boolean().optional(),
  /** Files may stand at their final places. */
  swapping: z.boolean().optional(),
  swapped: z.boolean().optional(),
  defining: z.boolean().optional(),
  /** The restored machine may have been started. */
  starting: z.boolean().optional(),
  started: z.boolean().optional(),
  /** We have stopped vCPUs that ran, for a flush. */
  vcpusHeld: z.boolean().optional(),
  /** The images stand alone, and are on the disk. */
  local: z.boolean().optional(),
  /** The memory of a machine that lost its server, on its way to a new connection. */
  reconnecting: z.enum(['begun', 'saved', 'done']).optional(),
  /** What the images were known by when their machine was saved for that. */
  savedMarks: z.record(z.string(), z.string()).optional(),
  /** How often that was done. */
  reconnections: z.number().optional(),
  /** The backup turned out to be damaged after the machine was started on it. */
  damage: z.string().optional(),
  /** This host could not offer the processor that the memory state needs: the machine was booted. */
  bootedInstead: z.boolean().optional(),
  /** It has its autostart: that is the owner's to change from here on. */
  autostartGiven: z.boolean().optional(),
  error: z
    .object({ code: z.string(), message: z.string(), hint: z.string().optional(), retryable: z.boolean() })
    .optional(),
});

export type RestoreFacts = z.infer<typeof restoreFactsSchema>;
