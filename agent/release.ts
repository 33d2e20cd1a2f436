import { isAbsolute } from 'node:path';
import { messageOf, StillpointError } from '../common/errors.ts';
import { readImageInfo, removeBitmap } from '../common/qemuImage.ts';
import { DomainXml } from './hypervisor/domainXml.ts';
import type { Hypervisor, MachineSummary } from './hypervisor/hypervisor.ts';
import { dropCheckpoint, isOurCheckpoint } from './hypervisor/ourCheckpoints.ts';
import { JobError } from './jobs/errors.ts';
import type { Journal } from './jobs/journal.ts';

/** A bitmap of ours in an image. */
export interface OurBitmap {
  readonly image: string;
  readonly name: string;
}

/** What was taken off a machine, and what could not be. */
export interface Released {
  readonly machine: { readonly name: string; readonly uuid: string };
  readonly checkpoints: readonly string[];
  readonly bitmaps: readonly OurBitmap[];
  /** Bitmaps that only a machine that is off lets go of, or that qemu-img could not remove. */
  readonly left: readonly (OurBitmap & { readonly reason: string })[];
}

/**
 * Takes our checkpoints and their bitmaps off a machine; nothing of others. Backups are not touched; the next one of
 * mode `disk` reads everything.
 * @throws HypervisorError; JobError UNFINISHED_JOB while a job of ours has the machine
 */
export async function releaseMachine(
  parts: { readonly hypervisor: Hypervisor; readonly journal: Journal },
  nameOrUuid: string,
): Promise<Released> {
  const { hypervisor, journal } = parts;
  const machine = await hypervisor.findMachine(nameOrUuid);
  const job = journal.holding().find(({ machineUuid }) => machineUuid === machine.uuid);
  if (job !== undefined)
    throw new JobError('UNFINISHED_JOB', `job ${job.id} (${job.kind}, ${job.state}) has ${machine.name}`, {
      hint: `stillpoint job show ${job.id}; end it first: stillpoint job retry ${job.id}, or job cancel`,
    });
  const checkpoints: string[] = [];
  for (const name of (await hypervisor.checkpointNames(machine.uuid)).toReversed()) {
    if (!isOurCheckpoint(name)) continue;
    await dropCheckpoint(hypervisor, machine.uuid, name);
    checkpoints.push(name);
  }
  const bitmaps: OurBitmap[] = [];
  const left: Released['left'][number][] = [];
  const isOff = machine.status.state === 'shut-off' || machine.status.state === 'crashed';
  for (const bitmap of await ourBitmaps(hypervisor, machine)) {
    if (!isOff) {
      left.push({
        ...bitmap,
        reason: 'its checkpoint was lost; QEMU lets go of it only when the machine is off',
      });
      continue;
    }
    try {
      await removeBitmap(bitmap.image, bitmap.name);
      bitmaps.push(bitmap);
    } catch (error) {
      if (!(error instanceof StillpointError)) throw error;
      left.push({ ...bitmap, reason: messageOf(error) });
    }
  }
  return { machine: { name: machine.name, uuid: machine.uuid }, checkpoints, bitmaps, left };
}

/**
 * Bitmaps of ours that stand in the images of a machine. QEMU writes those of a running machine when it closes the
 * image, so that only older ones are seen.
 * @throws HypervisorError, QemuImageError
 */
export async function ourBitmaps(
  hypervisor: Hypervisor,
  { uuid }: MachineSummary,
): Promise<readonly OurBitmap[]> {
  const known = new Set(await hypervisor.checkpointNames(uuid));
  const found: OurBitmap[] = [];
  for (const { path, format } of DomainXml.parse(await hypervisor.definition(uuid, 'live')).volumes) {
    if (path === undefined || !isAbsolute(path) || format !== 'qcow2') continue;
    const { bitmaps } = await readImageInfo(path, 'qcow2', { inUse: true });
    for (const name of bitmaps)
      if (isOurCheckpoint(name) && !known.has(name)) found.push({ image: path, name });
  }
  return found;
}
