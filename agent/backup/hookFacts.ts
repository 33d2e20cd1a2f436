import * as z from 'zod';

/** The programs that a policy names, by when they run. */
export const hookKinds = ['preBackup', 'postBackup', 'onFailure'] as const;
export type HookKind = (typeof hookKinds)[number];

const hookSchema = z.object({
  /** Absolute path and arguments. */
  command: z.array(z.string()).min(1),
  deadlineMs: z.number().positive(),
});

/** Which hooks a job has; kept in the journal so that recovery runs the same. */
export const hooksSchema = z.object({
  preBackup: hookSchema.extend({ whenItFails: z.enum(['abort', 'continue']) }).optional(),
  postBackup: hookSchema.optional(),
  onFailure: hookSchema.optional(),
});

/** What became of a hook. */
export const hookRunSchema = z.object({
  state: z.enum(['begun', 'succeeded', 'failed']),
  startedAt: z.iso.datetime(),
  durationMs: z.number().nonnegative().nullable(),
  exitCode: z.number().nullable(),
  /** Why it failed; null: it did not. */
  problem: z.string().nullable(),
  /** The last of what it has printed, without secrets. */
  output: z.string(),
  /** While it runs: the leader of its group, as owners of jobs are named. */
  process: z.object({ pid: z.number(), startTicks: z.number(), bootId: z.string() }).nullable(),
});

export const hookRunsSchema = z.object({
  preBackup: hookRunSchema.optional(),
  postBackup: hookRunSchema.optional(),
  onFailure: hookRunSchema.optional(),
});

export type Hooks = z.infer<typeof hooksSchema>;
export type HookRun = z.infer<typeof hookRunSchema>;
export type HookRuns = z.infer<typeof hookRunsSchema>;

/** As much of the facts of a job as its hooks need and change. */
export interface HookedFacts {
  readonly backupId: string;
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly settings: {
    readonly mode: string;
    readonly storages: readonly string[];
    readonly hooks: Hooks;
  };
  readonly pointInTime?: string | undefined;
  readonly hooks?: HookRuns | undefined;
  readonly warnings: readonly string[];
}
