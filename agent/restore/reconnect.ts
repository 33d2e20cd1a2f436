import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { StepContext } from '../jobs/step.ts';
import { inspectStateFile, makeStateDurable } from '../snapshot/stateFile.ts';
import { hasRun, markOf } from './files.ts';
import { servedVolumes } from './instantPlan.ts';
import type { RestoreFacts, RestorePlan } from './plan.ts';
import { requireRestoredImages } from './restoredImages.ts';

type Context = StepContext<RestoreFacts>;

/** No reconnection is under way. */
export function hasReconnected({ reconnecting }: RestoreFacts): boolean {
  return reconnecting === undefined || reconnecting === 'done';
}

/**
 * Connects a machine to a new server of its backup. QEMU 7.2 never connects again by itself, but a machine whose
 * memory is saved and restored has a new QEMU, which does: requests that failed are made again, and the guest sees
 * a pause instead of an error (docs/BEHAVIOUR.md).
 */
export async function reconnect(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { plan, restoreDeadlineMs } = context.facts;
  const { uuid } = plan.machine;
  const file = memoryFile(plan);
  await rm(file, { force: true });
  for (const { target } of servedVolumes(plan))
    if ((await hypervisor.blockJob(uuid, target)) !== null) await hypervisor.abortBlockJob(uuid, target);
  const definition = DomainXml.parse(await hypervisor.definition(uuid, 'migratable'));
  definition.removeBackingStores();
  await hypervisor.save(uuid, { file, definition: definition.toString(), deadlineMs: restoreDeadlineMs });
  await context.point('saved');
  await startWithMemory(hypervisor, context);
}

/**
 * Starts a machine that was saved to be connected again: with its memory if that is complete and its disks have not
 * run since, cold otherwise.
 */
export async function startWithMemory(hypervisor: Hypervisor, context: Context): Promise<void> {
  const { plan, restoreDeadlineMs } = context.facts;
  const { uuid, name } = plan.machine;
  const file = memoryFile(plan);
  const isWhole = (await inspectStateFile(file)) === 'complete';
  if (isWhole && context.facts.reconnecting === 'begun') {
    await makeStateDurable(file);
    const savedMarks: Record<string, string> = {};
    for (const volume of plan.volumes) savedMarks[volume.staged] = await markOf(volume.file);
    context.commit({ reconnecting: 'saved', savedMarks });
  }
  if (!isWhole || (await hasRun(plan.volumes, context.facts.savedMarks ?? {}))) {
    context.warn(`${name} is started cold: what was in its memory is lost`);
    await hypervisor.start(uuid);
  } else {
    await hypervisor.restoreState({ file, paused: true, deadlineMs: restoreDeadlineMs });
    await requireRestoredImages(hypervisor, plan, 'some are pulled');
    context.commit({ reconnecting: 'done' });
    await hypervisor.resume(uuid);
  }
  context.commit({ reconnecting: 'done' });
  await rm(file, { force: true });
}

function memoryFile(plan: RestorePlan): string {
  return join(plan.workDirectories[0] ?? '', 'reconnect.state');
}
