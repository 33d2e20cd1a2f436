import { describeChoice, type StorageChoice } from './storageChoice.ts';
import { checkpointNameOf, isOurCheckpoint } from '../hypervisor/ourCheckpoints.ts';
import type { Checkpoint } from '../hypervisor/backupXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { ReadVolume, VolumeRead } from '../snapshot/readPlan.ts';
import type { Manifest } from '../../storage/manifest.ts';
import type { BackupEntry, Storage } from '../../storage/storage.ts';

/*
 * A lineage is the sequence of backups of one machine in one storage. Nothing is written down about it: its head is
 * the newest good backup there whose checkpoint libvirt still knows, so that it advances with the commit of a
 * manifest and with nothing else. Which checkpoint is newer is libvirt's knowledge; clocks are not asked.
 */

/** Where the lineage of a machine in one storage stands. */
export interface LineageHead {
  readonly manifest: Manifest;
  readonly checkpoint: Checkpoint;
}

/**
 * The backup of a storage that an increment can start from.
 * @param checkpoints those of the machine, the oldest first
 */
export function lineageHead(
  entries: readonly BackupEntry[],
  checkpoints: readonly Checkpoint[],
): LineageHead | null {
  let head: LineageHead | null = null;
  let newest = -1;
  for (const { state, manifest } of entries) {
    if (state !== 'Active' || manifest?.checkpoint === undefined) continue;
    const index = checkpoints.findIndex(({ name }) => name === manifest.checkpoint);
    const checkpoint = checkpoints[index];
    if (checkpoint === undefined || index <= newest || !isOurCheckpoint(checkpoint.name)) continue;
    [head, newest] = [{ manifest, checkpoint }, index];
  }
  return head;
}

/** What is wanted of increments. */
export interface IncrementWishes {
  readonly backupId: string;
  /** Checkpoints are made, and increments from them. */
  readonly incremental: boolean;
  /** Why everything is to be read in full all the same. */
  readonly rereadReason: string | null;
  /** Which storages stand in for others. */
  readonly storageChoices?: readonly StorageChoice[] | undefined;
}

/** A volume that may be read in part. */
export type LineageVolume = Pick<
  ReadVolume,
  'target' | 'image' | 'format' | 'virtualSizeBytes' | 'keepsBitmaps' | 'reads' | 'since'
>;

/** What a backup must say of itself to be part of a lineage. */
export interface LineagePlan {
  readonly machine: { readonly uuid: string };
  readonly mode: 'disk' | 'live' | 'offline';
  readonly checkpoint: string | null;
  readonly volumes: readonly LineageVolume[];
}

/**
 * Decides for each volume and storage of a backup whether it can be an increment, and since which checkpoint QEMU has
 * to tell the changes. Whether the bitmaps are in order shows only later.
 * @throws StorageError, HypervisorError
 */
export async function planLineages<Plan extends LineagePlan>(
  hypervisor: Hypervisor,
  plan: Plan,
  storages: readonly Storage[],
  wishes: IncrementWishes,
): Promise<Plan> {
  if (plan.mode === 'offline') return plan;
  const checkpoints = wishes.incremental ? await hypervisor.checkpoints(plan.machine.uuid) : [];
  const heads = new Map<string, LineageHead | null>();
  for (const storage of storages) {
    const entries = wishes.incremental ? await storage.list({ machine: plan.machine.uuid }) : [];
    heads.set(storage.name, lineageHead(entries, checkpoints));
  }
  const readOf = (volume: LineageVolume, storage: string): VolumeRead => {
    const head = heads.get(storage) ?? null;
    if (!wishes.incremental) return { reason: 'the policy says incremental: false' };
    if (wishes.rereadReason !== null) return { reason: wishes.rereadReason };
    const read = readSince(volume, head);
    const standIn = standsIn(wishes, storage);
    // Whoever stands in has none of the backups that were made before: not a fault, but a reason.
    return 'reason' in read && head === null && standIn !== undefined
      ? { reason: `${describeChoice(standIn)}; ${read.reason}` }
      : read;
  };
  return {
    ...plan,
    checkpoint:
      wishes.incremental && plan.volumes.some(({ keepsBitmaps }) => keepsBitmaps)
        ? checkpointNameOf(wishes.backupId)
        : null,
    volumes: plan.volumes.map((volume) => {
      const reads = Object.fromEntries(
        [...heads.keys()].map((storage) => [storage, readOf(volume, storage)]),
      );
      return { ...volume, reads, since: oldestOf(reads, checkpoints) };
    }),
  };
}

function standsIn({ storageChoices = [] }: IncrementWishes, name: string): StorageChoice | undefined {
  return storageChoices.find(({ storage, passedOver }) => storage === name && passedOver.length > 0);
}

function readSince(volume: LineageVolume, head: LineageHead | null): VolumeRead {
  if (!volume.keepsBitmaps) return { reason: `an image of this kind (${volume.format}) keeps no bitmaps` };
  if (head === null)
    return { reason: 'no earlier backup in this storage has a checkpoint that is still there' };
  const { manifest, checkpoint } = head;
  const stored = manifest.volumes.find(({ target }) => target === volume.target);
  if (stored === undefined) return { reason: `it is not in the backup before, ${manifest.id}` };
  if (!checkpoint.targets.includes(volume.target))
    return { reason: `checkpoint ${checkpoint.name} has no bitmap of it` };
  if (stored.source !== volume.image) return { reason: `it was another image before, ${stored.source}` };
  // QEMU does not mark what a resize adds.
  if (stored.virtualSizeBytes !== volume.virtualSizeBytes)
    return { reason: `it was resized from ${stored.virtualSizeBytes} to ${volume.virtualSizeBytes} bytes` };
  return { parent: manifest.id, checkpoint: checkpoint.name };
}

function oldestOf(
  reads: Readonly<Record<string, VolumeRead>>,
  checkpoints: readonly Checkpoint[],
): string | null {
  const needed = new Set(
    Object.values(reads).flatMap((read) => ('checkpoint' in read ? [read.checkpoint] : [])),
  );
  return checkpoints.find(({ name }) => needed.has(name))?.name ?? null;
}

/** Takes what cannot be an increment after all: all its storages get the volume in full. */
export function readInFull<Plan extends Pick<LineagePlan, 'volumes'>>(
  plan: Plan,
  reasons: ReadonlyMap<string, string>,
): Plan {
  return {
    ...plan,
    volumes: plan.volumes.map((volume) => {
      const reason = reasons.get(volume.target);
      if (reason === undefined) return volume;
      const reads = Object.fromEntries(
        Object.entries(volume.reads).map(([storage, read]) => [
          storage,
          'reason' in read ? read : { reason },
        ]),
      );
      return { ...volume, since: null, reads };
    }),
  };
}
