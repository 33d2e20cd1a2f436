import { newId } from '../common/ids.ts';
import { planReading } from './backup/readPlanning.ts';
import type { DecidedBackup, RequestParts } from './backupRequests.ts';
import { checkpointNameOf } from './hypervisor/ourCheckpoints.ts';
import { planLineages } from './retain/lineage.ts';
import type { ChosenStorages } from './retain/storageChoice.ts';
import { requireStorages, requireStoragesForRead } from './retain/storageRoom.ts';
import type { LivePlan } from './snapshot/livePlan.ts';
import type { SavePlan } from './snapshot/plan.ts';
import { planLive } from './snapshot/planLive.ts';
import { planSave } from './snapshot/preflight.ts';
import type { ReadPlan } from './snapshot/readPlan.ts';
import { chooseAgain, trialOfRead, trialOfSave, warningsOf } from './storageGroups.ts';

/** What a backup would do. */
export interface BackupPlan extends ChosenStorages {
  readonly plan: SavePlan | LivePlan | ReadPlan;
  readonly warnings: readonly string[];
}

/**
 * Plans a backup as its job would, without doing anything.
 * @throws what the preflight of its job throws
 */
export async function planBackup(decided: DecidedBackup, parts: RequestParts): Promise<BackupPlan> {
  const { machine, settings } = decided;
  const { hypervisor, config, storage } = parts;
  const jobId = newId();
  const about = { jobId, machineUuid: machine.uuid };
  if (settings.mode === 'save') {
    const ramDiskReservedBytes = parts.ramDiskReservedBytes();
    const checkpoint = settings.incremental ? checkpointNameOf(jobId) : null;
    const plan = await planSave(hypervisor, { ...about, ...settings, checkpoint, ramDiskReservedBytes });
    const chosen = await chooseAgain(config, settings, storage, trialOfSave(plan));
    const storages = chosen.storages.map(storage);
    const warnings = [...(await requireStorages(storages, plan)), ...(await warningsOf(chosen, storages))];
    return { plan, ...chosen, warnings: [...plan.warnings, ...warnings] };
  }
  if (settings.mode === 'live') {
    const ramDiskReservedBytes = parts.ramDiskReservedBytes();
    const seen = await planLive(hypervisor, { ...about, ...settings, ramDiskReservedBytes });
    return planRead(seen, jobId, settings, parts, seen.memoryBytes);
  }
  return planRead(await planReading(hypervisor, jobId, machine, settings), jobId, settings, parts, 0);
}

/** With its storages and lineages, what a backup that reads volumes where they are would do. */
async function planRead(
  seen: LivePlan | ReadPlan,
  backupId: string,
  settings: Exclude<DecidedBackup['settings'], { readonly mode: 'save' }>,
  { hypervisor, config, storage }: RequestParts,
  memoryBytes: number,
): Promise<BackupPlan> {
  const wishes = { backupId, ...settings };
  const trial = trialOfRead(hypervisor, seen, wishes, memoryBytes);
  const chosen = await chooseAgain(config, settings, storage, trial);
  const storages = chosen.storages.map(storage);
  const plan = await planLineages(hypervisor, seen, storages, { ...wishes, ...chosen });
  const warnings = [
    ...(await requireStoragesForRead(storages, plan, memoryBytes)),
    ...(await warningsOf(chosen, storages)),
  ];
  return { plan, ...chosen, warnings: [...plan.warnings, ...warnings] };
}
