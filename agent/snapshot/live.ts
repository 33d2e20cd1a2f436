import { chmod, chown, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { messageOf } from '../../common/errors.ts';
import { fsyncDirectory, fsyncFile } from '../../common/files.ts';
import { createOverlay } from '../../common/qemuImage.ts';
import { copySecurityLabel } from '../../common/xattr.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import type { LivePlan, LiveVolume } from './livePlan.ts';
import { markOf } from './offlineWatch.ts';
import { makeStateDurable } from './stateFile.ts';
import { makeWorkDirectory } from './workFiles.ts';

/**
 * Makes the empty overlays while the machine runs, with the owner and mode of their images, durable. May be started
 * again after a crash, as long as no machine uses them.
 * @throws SnapshotError CANNOT_CREATE_EMPTY_DISK_IMAGE
 */
export async function prepareOverlays(plan: LivePlan): Promise<void> {
  for (const directory of plan.workDirectories) await makeWorkDirectory(directory);
  for (const volume of plan.volumes) {
    const { file, format, image, overlay, virtualSizeBytes } = volume;
    try {
      await rm(overlay, { force: true });
      await createOverlay(overlay, { path: image, format }, virtualSizeBytes);
      await copySecurityLabel(file, overlay);
      const { uid, gid, mode } = await stat(file);
      await chown(overlay, uid, gid);
      await chmod(overlay, mode & 0o7777);
      await fsyncFile(overlay);
    } catch (error) {
      throw new SnapshotError(
        'CANNOT_CREATE_EMPTY_DISK_IMAGE',
        `the overlay ${overlay} cannot be made: ${messageOf(error)}`,
        {
          cause: error,
          hint: `nothing was changed; look at ${dirname(overlay)}: df -h, df -i, ls -l`,
        },
      );
    }
  }
  for (const directory of plan.workDirectories) await fsyncDirectory(directory);
}

/**
 * Takes memory and volumes at one instant. Afterwards the machine runs on its overlays.
 * @throws SnapshotError CANNOT_SAVE_MACHINE_STATE; HypervisorError OPERATION_ABORTED when `signal` ended it
 */
export async function takeLive(
  hypervisor: Hypervisor,
  plan: LivePlan,
  options: { readonly deadlineMs: number; readonly signal: AbortSignal },
): Promise<void> {
  const overlays = plan.volumes.map(({ target, overlay }) => ({ target, overlay }));
  try {
    await hypervisor.snapshotLive(plan.machine.uuid, { memoryFile: plan.stateFile, overlays, ...options });
  } catch (error) {
    if (options.signal.aborted) throw error;
    const noSpace = error instanceof HypervisorError && error.code === 'NO_SPACE';
    throw new SnapshotError(
      'CANNOT_SAVE_MACHINE_STATE',
      `memory and volumes of ${plan.machine.name} could not be taken: ${messageOf(error)}`,
      {
        cause: error,
        hint: noSpace
          ? `free space for its memory: df -h ${plan.stateFile}`
          : `journalctl -u libvirtd; the machine's log in /var/log/libvirt/qemu`,
      },
    );
  }
}

/** How a volume of a machine stands: on its image as before the backup, or on our overlay over it. */
export type LiveChain = 'image' | 'overlay' | 'unknown';

/** Compares the chain in a live definition with the two that a volume may have. */
export function liveChainOf(live: DomainXml, volume: LiveVolume): LiveChain {
  const found = live.volumes.find((candidate) => candidate.target === volume.target);
  if (found?.path === undefined || found.backingChain === undefined) return 'unknown';
  const chain = [found.path, ...found.backingChain.map(({ path }) => path)];
  if (isSame(chain, volume.chain)) return 'image';
  return isSame(chain, [volume.overlay, ...volume.chain]) ? 'overlay' : 'unknown';
}

function isSame(a: readonly (string | undefined)[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((path, index) => path === b[index]);
}

/**
 * Takes the ends of chains out of the definition inside a memory state: restored onto another chain, libvirt would
 * obey them (trap 1). Then makes the state durable. May be started again after a crash.
 */
export async function correctState(hypervisor: Hypervisor, plan: LivePlan, file: string): Promise<void> {
  const definition = DomainXml.parse(await hypervisor.stateDefinition(file));
  if (definition.volumes.some(({ backingChain }) => backingChain !== undefined)) {
    definition.removeBackingStores();
    await hypervisor.setStateDefinition(file, definition.toString());
  }
  if (file !== plan.stateFile || !plan.stateOnRamDisk) await makeStateDurable(file);
}

/** What tells by target whether a frozen image was written to: by QEMU, by anybody. */
export async function frozenMarks(plan: LivePlan): Promise<Record<string, string>> {
  const marks: Record<string, string> = {};
  for (const { target, file } of plan.volumes) marks[target] = await markOf(file);
  return marks;
}

/** @throws SnapshotError MACHINE_INTERFERED when an image is not what it was just after T1 */
export async function requireFrozen(plan: LivePlan, marks: Readonly<Record<string, string>>): Promise<void> {
  for (const { target, file } of plan.volumes) {
    if ((await markOf(file)) === marks[target]) continue;
    throw new SnapshotError(
      'MACHINE_INTERFERED',
      `somebody wrote to ${file} while it was read: it is not what ${plan.machine.name} had at T1`,
      {
        hint: 'nothing of it was kept; start the backup again when nobody else merges or changes its images',
        retryable: true,
      },
    );
  }
}
