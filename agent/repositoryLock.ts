import { type ErrorRecord, errorRecord } from '../common/errors.ts';
import type { Backend, CallOptions } from '../storage/backends/backend.ts';
import type { DisplacedObject } from '../storage/backends/objectLock.ts';
import { type UntimelyDeletion, untimelyDeletions } from '../storage/repository/backupLock.ts';
import { displacedObjects } from '../storage/repository/displaced.ts';
import { RepositoryError } from '../storage/repository/errors.ts';
import { notEnforced } from '../storage/repository/lockedStore.ts';
import type { RepairReport } from '../storage/repository/repair.ts';
import type { RepairStep } from '../storage/repository/repairSteps.ts';
import type { Repository } from '../storage/repository/repository.ts';

/** Whether backups are locked, and what somebody has tried against it. */
export interface LockReport {
  /** What is under retention can be deleted all the same, as was seen just now; `null`: it cannot. */
  readonly problem: ErrorRecord | null;
  /** Backups that are said to be deleted though they are locked. */
  readonly deletions: readonly UntimelyDeletion[];
}

/** Tries whether the store locks objects, and has the repository say so from now on. */
export async function lookAtLock(repository: Repository, call: CallOptions): Promise<LockReport> {
  const isEnforced = await repository.findLock(call);
  const { location } = repository.context.backend;
  const why = 'an object under retention could be deleted, or was not taken';
  const problem = isEnforced ? null : errorRecord(notEnforced(location, why));
  return { problem, deletions: await untimelyDeletions(repository.context, call) };
}

/**
 * A repair before which everything is brought back that was stored under retention and that readers do not find. What is
 * displaced can be the configuration or the key slots, without which a dry run cannot look any further.
 */
export async function repairWithLock(
  backend: Pick<Backend, 'objectLock'>,
  options: CallOptions & { readonly apply: boolean; readonly repair: () => Promise<RepairReport> },
): Promise<RepairReport> {
  const displaced = await displacedObjects(backend, options);
  const steps = displaced.map(describe);
  if (options.apply) for (const object of displaced) await backend.objectLock?.bringBack(object, options);
  try {
    const report = await options.repair();
    return { ...report, steps: [...steps, ...report.steps] };
  } catch (error) {
    if (options.apply || steps.length === 0 || !(error instanceof RepositoryError)) throw error;
    const kept = [{ name: 'the repository', reason: `${error.message}; more is known after --apply` }];
    return { applied: false, steps, kept, touched: [] };
  }
}

function describe({ name, how, retainedUntil }: DisplacedObject): RepairStep {
  const reason = `somebody has ${how} it; what was stored is locked until ${retainedUntil.toISOString()}`;
  return { action: 'bring-back', name, reason };
}
