import type { CallOptions } from '../backends/backend.ts';
import type { Problem } from './chunkIndex.ts';
import { wantedCopies } from './configCopies.ts';
import { isLocked } from './lockedStore.ts';
import { createOnce } from './objects.ts';
import { planCollection, planHosts, planPacks, type RepairPlan, type RepairStep } from './repairSteps.ts';
import { planDeletions } from './repairDeletions.ts';
import { planFences, planManifests } from './repairManifests.ts';
import type { Repository } from './repository.ts';
import { type BackupReport, verifyRepository } from './verifyRepository.ts';

export interface RepairOptions extends CallOptions {
  /** Read every byte to find what is damaged. */
  readonly data: boolean;
  /** Do it; otherwise only say what would be done (invariant 13). */
  readonly apply: boolean;
  /** Now, RFC 3339. */
  readonly at: string;
  /** Of the body of a new pack, at which it is closed. */
  readonly packSizeBytes: number;
  /** The operator's word that no host collects: for a verdict that cannot be read. */
  readonly isAlone: boolean;
}

/** A backup that damage touches. */
export interface TouchedBackup {
  readonly id: string;
  /** Its name; `null` when the manifest cannot be read. */
  readonly machine: string | null;
  readonly problems: readonly string[];
  /** Chunks that are missing or damaged. */
  readonly lostChunks: number;
  /**
   * Of these, those that the newest backup of the machine needs as well. The next backup reads them from the machine;
   * as far as it still has the same data, this backup is whole again.
   */
  readonly healableChunks: number;
}

export interface RepairReport {
  readonly applied: boolean;
  /** In their order: what there is to do, or what was done. */
  readonly steps: readonly RepairStep[];
  /** Damage that stays, each with what to do about it. */
  readonly kept: readonly Problem[];
  /** Before a dry run, and after the repair otherwise. */
  readonly touched: readonly TouchedBackup[];
}

/**
 * Puts a damaged repository in order as far as that can be done (docs/FORMAT.md, "Repair"). Others may write, read,
 * delete and collect meanwhile: each step is one that anybody may take at any time, and it never removes a pack. It
 * can end at any call, and another one does the rest; where nothing is left to do nothing is done.
 *
 * Rejects when the store does not answer: STORAGE_…; CHUNK_MISSING never, that is in the report.
 */
export async function repairRepository(
  repository: Repository,
  options: RepairOptions,
): Promise<RepairReport> {
  const { context } = repository;
  // To whoever cannot read, what is whole looks damaged.
  context.keys.requireReading(context.storage);
  const compared = new Set<string>();
  const index = await repository.index(options);
  const before = await verifyRepository(context, index, { ...options, compared });
  const plans = [
    await planConfig(repository, options),
    await planPacks(context, index, before.damagedPacks, options),
    await planManifests(context, options),
    await planDeletions(context, options),
    await planFences(context, options),
    await planHosts(context, options),
    await planCollection(context, options),
  ];
  const planned = plans.flatMap(({ steps }) => steps);
  const kept = plans.flatMap((plan) => plan.kept);
  if (!options.apply)
    return { applied: false, steps: planned.map(described), kept, touched: touchedOf(before.backups) };
  const done: RepairStep[] = [];
  for (const step of planned) {
    options.signal?.throwIfAborted();
    try {
      if (await step.act()) done.push(described(step));
    } catch (error) {
      if (!isLocked(error)) throw error;
      kept.push({ name: step.name, reason: `${step.reason}; ${error.message}` });
    }
  }
  repository.forgetIndex();
  const after = await verifyRepository(context, await repository.index(options), { ...options, compared });
  return { applied: true, steps: done, kept, touched: touchedOf(after.backups) };
}

function described({ action, name, reason }: RepairStep): RepairStep {
  return { action, name, reason };
}

async function planConfig({ context }: Repository, options: CallOptions): Promise<RepairPlan> {
  const wanted = await wantedCopies(context, options);
  const steps = wanted.map(({ name, reason, bytes }) => ({
    action: 'copy' as const,
    name,
    reason,
    act: async () => (await createOnce(context.backend, name, [bytes], options)) === 'created',
  }));
  return { steps, kept: [] };
}

/** Which backups damage touches, and how much of that the next backup can heal. @param backups the oldest one first */
export function touchedOf(backups: readonly BackupReport[]): readonly TouchedBackup[] {
  const newest = new Map<string, ReadonlySet<string>>();
  for (const { machine, lostChunks } of backups)
    if (machine !== null) newest.set(machine.uuid, new Set(lostChunks));
  return backups
    .filter(({ problems }) => problems.length > 0)
    .map(({ id, machine, problems, lostChunks }) => {
      const read = machine === null ? undefined : newest.get(machine.uuid);
      return {
        id,
        machine: machine?.name ?? null,
        problems,
        lostChunks: lostChunks.length,
        healableChunks: lostChunks.filter((chunk) => read?.has(chunk) === true).length,
      };
    });
}
