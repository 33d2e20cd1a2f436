import { setTimeout as sleep } from 'node:timers/promises';
import { errorRecord, type StillpointError } from '../../common/errors.ts';
import { exists, fsyncFile } from '../../common/files.ts';
import { rebaseImage, setBackingHeader } from '../../common/qemuImage.ts';
import type { Hypervisor, MachineStatus } from '../hypervisor/hypervisor.ts';
import { patiently } from '../hypervisor/patience.ts';
import { currentBootId } from '../jobs/owner.ts';
import type { Settlement, StepContext } from '../jobs/step.ts';
import { headerState } from '../merge/completeness.ts';
import { RestoreError } from './errors.ts';
import { markOf } from './files.ts';
import { pullPlan, servedVolumes } from './instantPlan.ts';
import { ensureAllServed, requireLocal } from './instantSteps.ts';
import { settledStatus } from './machineStatus.ts';
import type { RestoreFacts, RestorePlan } from './plan.ts';
import { hasReconnected, reconnect, startWithMemory } from './reconnect.ts';
import { answers } from './served.ts';

type Context = StepContext<RestoreFacts>;

/** A server that dies again and again has a cause that somebody must find. */
const reconnectionsMax = 3;
const goneWaitMs = 100;

/**
 * What is left of an instant restore whose machine was started and whose images are not durable yet. Overlay and
 * backup together are complete at every moment: a machine that is off is completed as it is, one that runs goes on
 * being pulled, one that has lost the server of its backup gets a new one and is connected to it.
 */
export async function settleInstant(
  hypervisor: Hypervisor,
  context: Context,
  cause: StillpointError | undefined,
): Promise<Settlement> {
  const { plan } = context.facts;
  const status = await patiently('looking at the machine', context, () =>
    settledStatus(hypervisor, plan.machine.uuid),
  );
  if (!isActive(status)) return settleOff(hypervisor, context);
  if (context.facts.vcpusHeld && status?.state === 'paused')
    await patiently('resuming the guest', context, () => hypervisor.resume(plan.machine.uuid));
  const isConnected = await isAnyServerGone(plan).then((isGone) => !isGone);
  if (isConnected && hasReconnected(context.facts)) {
    if (cause !== undefined) return { kind: 'park', error: errorRecord(cause) };
    return { kind: 'continue', from: 'pull' };
  }
  const reconnections = (context.facts.reconnections ?? 0) + 1;
  if (cause !== undefined && reconnections > reconnectionsMax)
    return { kind: 'park', error: errorRecord(cutOff(plan, cause)) };
  context.warn(`the server of the backup has died: ${plan.machine.name} gets a new one`);
  context.commit({ reconnecting: 'begun', reconnections });
  try {
    await ensureAllServed(hypervisor, plan);
    await reconnect(hypervisor, context);
  } catch (error) {
    const now = await settledStatus(hypervisor, plan.machine.uuid);
    if (!isActive(now)) return settleOff(hypervisor, context);
    return { kind: 'park', error: errorRecord(cutOff(plan, error)) };
  }
  return { kind: 'continue', from: 'pull' };
}

function isActive(status: MachineStatus | undefined): boolean {
  return status !== undefined && status.state !== 'shut-off' && status.state !== 'crashed';
}

/** Some volume still needs its server, and that is gone. */
async function isAnyServerGone(plan: RestorePlan): Promise<boolean> {
  for (const { served } of servedVolumes(plan)) {
    if (await answers(served.socket)) continue;
    // A server that ends with its last client is asked twice.
    await sleep(goneWaitMs);
    if (!(await answers(served.socket))) return true;
  }
  return false;
}

/** The machine is off: its memory goes on if we hold it, the host starts it if it would have, or it is completed. */
async function settleOff(hypervisor: Hypervisor, context: Context): Promise<Settlement> {
  const { plan, bootId, reconnecting } = context.facts;
  await putBackupsUnder(context);
  const isOurs = reconnecting === 'begun' || reconnecting === 'saved';
  const wouldStart = plan.autostart && bootId !== currentBootId();
  if (isOurs || wouldStart) {
    await patiently('serving the backup', context, () => ensureAllServed(hypervisor, plan));
    await patiently('starting the machine', context, async () => {
      if (isActive(await settledStatus(hypervisor, plan.machine.uuid))) return;
      if (isOurs) await startWithMemory(hypervisor, context);
      else await hypervisor.start(plan.machine.uuid);
    });
    return { kind: 'continue', from: 'pull' };
  }
  await ensureAllServed(hypervisor, plan);
  for (const volume of servedVolumes(plan)) {
    await rebaseImage(volume.file, null, { deadlineMs: context.facts.pullDeadlineMs });
    await fsyncFile(volume.file);
  }
  await requireLocal(plan, { inUse: false });
  context.commit({ local: true });
  return { kind: 'continue', from: 'check' };
}

/**
 * Puts the served backup under images whose pull was not flushed, for a machine that is off: right at any time
 * before the flush, because an image then shows what it holds itself and the backup everywhere else (trap 2).
 */
async function putBackupsUnder({ facts }: Pick<Context, 'facts'>): Promise<void> {
  if (facts.local) return;
  const merge = pullPlan(facts.plan);
  for (const volume of merge.volumes) {
    if (!(await isStillOurs(facts, volume.target))) throw notOurs(volume.file);
    if ((await headerState(volume, { inUse: false, includeSharedBase: true })) !== 'merged') continue;
    await setBackingHeader(volume.file, { path: volume.frozen, format: 'raw' });
    await fsyncFile(volume.file);
  }
}

/** The image is the file that this restore has made, whatever was written into it since. */
async function isStillOurs({ plan, stagedMarks = {} }: RestoreFacts, target: string): Promise<boolean> {
  const volume = plan.volumes.find((one) => one.target === target);
  if (volume === undefined || !(await exists(volume.file))) return false;
  return (await markOf(volume.file)).split(':')[0] === stagedMarks[volume.staged]?.split(':')[0];
}

/**
 * Before libvirt starts, after a crash of the host: an image whose pull was not flushed looks healthy and would
 * boot into zeros. With the backup under it again it does not start until somebody serves that.
 * @returns the images that were repaired
 */
export async function repairInstantOffline(facts: RestoreFacts): Promise<readonly string[]> {
  if (!facts.plan.instant || !facts.started || facts.local) return [];
  await putBackupsUnder({ facts });
  return servedVolumes(facts.plan).map(({ file }) => file);
}

function notOurs(file: string): RestoreError {
  return new RestoreError('NOT_LOCAL', `somebody has put another image in the place of ${file}`, {
    hint: 'put the image of the restore back, then: stillpoint job retry <id>',
  });
}

function cutOff(plan: RestorePlan, cause: unknown): RestoreError {
  return new RestoreError(
    'MACHINE_CUT_OFF',
    `${plan.machine.name} has lost its connection to the backup: ${errorRecord(cause).message}`,
    {
      cause,
      hint: `it waits and loses nothing; look at the storage, then: stillpoint job retry <id>; or: virsh destroy ${plan.machine.name}, and retry: it is completed while it is off`,
      retryable: true,
    },
  );
}
