import { commitImage } from '../../common/qemuImage.ts';
import { exists, fsyncFile } from '../../common/files.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { BlockJob, Hypervisor } from '../hypervisor/hypervisor.ts';
import { foreignWriters } from '../snapshot/imageUsers.ts';
import { liveChainOf } from '../snapshot/live.ts';
import type { LivePlan, LiveVolume } from '../snapshot/livePlan.ts';
import { Alarm } from './alarm.ts';
import { BlockJobPace } from './blockJobPace.ts';
import { MergeError } from './errors.ts';
import { requireReserve } from './space.ts';
import {
  deadlineExceeded,
  type MergeOptions,
  noteOfEndMs,
  requireHealthyMachine,
  stopBlockJobs,
} from './stream.ts';

/** How often block jobs are looked at; events wake the loop earlier. */
const pollMs = 500;

export interface CommitOptions extends Omit<MergeOptions, 'includeSharedBase'> {
  /** Called before vCPUs that run are stopped for a pivot, and after they were resumed. */
  onHeld(vcpusHeld: boolean): void;
  /** Called while the vCPUs stand still, before the pivot. */
  onSuspended(): Promise<void>;
}

/**
 * Brings an active machine from its overlays back to its images, one volume after the other. Volumes that are back
 * already, and commits that run already, are taken as they are. Top and base are always named, and compared with
 * the chain before the begin and before the pivot: by default libvirt would commit into the lowest image, a template.
 * @throws MergeError; the machine's chain is complete in every case
 */
export async function commitVolumes(
  hypervisor: Hypervisor,
  plan: LivePlan,
  options: CommitOptions,
): Promise<void> {
  const { uuid } = plan.machine;
  const alarm = new Alarm();
  const unsubscribe = await hypervisor.subscribe((event) => {
    if (event.kind === 'reconnected' || event.uuid === uuid) alarm.ring();
  });
  const deadlineMs = performance.now() + options.deadlineMs;
  using _warm = await hypervisor.warmUp();
  try {
    for (const volume of plan.volumes)
      await commitVolume({ hypervisor, plan, volume, options, deadlineMs, alarm });
  } catch (error) {
    await stopBlockJobs(hypervisor, plan);
    throw error;
  } finally {
    await unsubscribe();
  }
}

interface Commit {
  readonly hypervisor: Hypervisor;
  readonly plan: LivePlan;
  readonly volume: LiveVolume;
  readonly options: CommitOptions;
  /** Monotonic clock. */
  readonly deadlineMs: number;
  readonly alarm: Alarm;
}

async function commitVolume(commit: Commit): Promise<void> {
  const { hypervisor, plan, volume, options, alarm } = commit;
  const { uuid } = plan.machine;
  const { target, overlay: top, image: base } = volume;
  const pace = new BlockJobPace(hypervisor, { uuid, target }, options.limit);
  if (!(await isOnOverlay(commit))) return;
  const running = await hypervisor.blockJob(uuid, target);
  requireOwnJob(plan, volume, running);
  if (running === null)
    await hypervisor.commit(uuid, { target, top, base, bandwidthBytesPerSecond: pace.atBegin() });
  else await pace.keep();
  for (let goneSinceMs: number | undefined; ; ) {
    await requireHealthyMachine(hypervisor, plan);
    const job = await hypervisor.blockJob(uuid, target);
    if (job === null) {
      if (!(await isOnOverlay(commit))) return;
      goneSinceMs ??= performance.now();
      if (performance.now() - goneSinceMs > noteOfEndMs) throw incomplete(plan, volume);
    } else {
      goneSinceMs = undefined;
      options.onProgress?.(job.currentBytes, job.endBytes);
      if (job.ready) {
        await pivot(commit);
        return;
      }
      await pace.keep();
      await requireReserve(volume);
    }
    if (performance.now() > commit.deadlineMs) throw deadlineExceeded(plan, options.deadlineMs);
    await alarm.wait(pollMs);
  }
}

/** Whether the volume still is to be merged. @throws MergeError when it stands on something unknown */
async function isOnOverlay({ hypervisor, plan, volume }: Commit): Promise<boolean> {
  const live = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'live'));
  const chain = liveChainOf(live, volume);
  if (chain !== 'unknown') return chain === 'overlay';
  throw new MergeError(
    'CANNOT_MERGE_DISK_IMAGES',
    `${volume.target} of ${plan.machine.name} stands on a chain that is not known`,
    {
      hint: `virsh dumpxml ${plan.machine.name}; it should be ${[volume.overlay, ...volume.chain].join(', ')}`,
    },
  );
}

function requireOwnJob(plan: LivePlan, volume: LiveVolume, job: BlockJob | null): void {
  if (job === null || job.kind === 'active-commit') return;
  throw new MergeError(
    'CANNOT_MERGE_DISK_IMAGES',
    `a block job (${job.kind}) of somebody else works on ${volume.target} of ${plan.machine.name}`,
    {
      hint: `virsh blockjob ${plan.machine.name} ${volume.target} --info; when it has ended: stillpoint job retry <id>`,
      retryable: true,
    },
  );
}

/**
 * Gives the volume its image back. The vCPUs stand still from before the pivot until libvirt has written the
 * definition: whoever dies in between, overlay and image show the same, and either may be started from. Without that
 * a libvirtd that dies after QEMU's pivot leaves a definition that names an overlay older than its image.
 */
async function pivot({ hypervisor, plan, volume, options }: Commit): Promise<void> {
  const { uuid } = plan.machine;
  const running = (await hypervisor.status(uuid)).state === 'running';
  if (running) {
    options.onHeld(true);
    await hypervisor.suspend(uuid);
  }
  try {
    await options.onSuspended();
    await hypervisor.pivot(uuid, volume.target);
  } finally {
    if (running) {
      await hypervisor.resume(uuid);
      options.onHeld(false);
    }
  }
}

function incomplete(plan: LivePlan, volume: LiveVolume): MergeError {
  return new MergeError(
    'CANNOT_MERGE_DISK_IMAGES',
    `the commit of ${volume.target} of ${plan.machine.name} ended before it was complete`,
    {
      hint: `the machine runs on; look at df -h and the machine's log, then: stillpoint job retry <id>`,
      retryable: true,
    },
  );
}

/**
 * Brings a machine that is off from its overlays back to its images: commits those that its definition names, then
 * lets it name the images again. Overlays that nobody names hold nothing that the image has not.
 * @throws QemuImageError, MergeError
 */
export async function commitOffline(
  hypervisor: Hypervisor,
  plan: LivePlan,
  options: { readonly deadlineMs: number },
): Promise<void> {
  const { uuid, name } = plan.machine;
  const persistent = DomainXml.parse(await hypervisor.definition(uuid, 'persistent'));
  for (const volume of plan.volumes) {
    if (persistent.volume(volume.target).path !== volume.overlay) continue;
    for (const file of [volume.overlay, volume.file]) {
      const [user] = await foreignWriters(file, '');
      if (user === undefined) continue;
      throw new MergeError(
        'CANNOT_MERGE_DISK_IMAGES',
        `process ${user.pid} (${user.command}) has ${file} of ${name} open, although the machine is off`,
        { hint: 'end it, then: stillpoint job retry <id>', retryable: true },
      );
    }
    await commitImage(volume.overlay, volume.image, options);
    await fsyncFile(volume.file);
    await nameImages(hypervisor, plan, [volume]);
  }
}

/** Lets the persistent definition name the images of these volumes; with `onOverlays` the overlays. */
export async function nameImages(
  hypervisor: Hypervisor,
  plan: LivePlan,
  volumes: readonly LiveVolume[],
  onOverlays = false,
): Promise<void> {
  const definition = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'persistent-secure'));
  for (const { target, image, overlay, format } of volumes) {
    if (onOverlays) definition.setVolumePath(target, overlay, 'qcow2');
    else definition.setVolumePath(target, image, format);
  }
  definition.removeBackingStores(volumes.map(({ target }) => target));
  await hypervisor.define(definition.toString());
}

/**
 * Proves that the machine is back on its images, live and persistent, and that nothing needs the overlays.
 * @throws MergeError CANNOT_MERGE_DISK_IMAGES
 */
export async function requireCommitted(
  hypervisor: Hypervisor,
  plan: LivePlan,
  active: boolean,
): Promise<void> {
  const { uuid, name } = plan.machine;
  const live = active ? DomainXml.parse(await hypervisor.definition(uuid, 'live')) : undefined;
  const persistent = DomainXml.parse(await hypervisor.definition(uuid, 'persistent'));
  for (const volume of plan.volumes) {
    const { target, image, overlay, file } = volume;
    const named = persistent.volumes.find((candidate) => candidate.target === target)?.path;
    const isBack = live === undefined || liveChainOf(live, volume) === 'image';
    const users = (await exists(overlay)) ? await foreignWriters(overlay, '') : [];
    if (isBack && named === image && users.length === 0) {
      await fsyncFile(file);
      continue;
    }
    throw new MergeError(
      'CANNOT_MERGE_DISK_IMAGES',
      `${target} of ${name} is not back on ${image} (${isBack ? 'back' : 'not back'} in QEMU, ${named ?? 'none'} in its definition, ${users.length} users of the overlay)`,
      { hint: `virsh domblklist ${name}; virsh domblklist ${name} --inactive`, retryable: true },
    );
  }
}
