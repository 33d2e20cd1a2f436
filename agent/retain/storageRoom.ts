import { summedBytesMax } from '../../common/chunkSums.ts';
import { formatBytes } from '../../common/units.ts';
import { StorageError, type StorageErrorCode } from '../../storage/errors.ts';
import { quotaError, quotaHint } from '../../storage/quota.ts';
import { fullnessWarning } from '../../storage/space.ts';
import type { Storage, StorageCheck } from '../../storage/storage.ts';
import type { SavePlan } from '../snapshot/plan.ts';
import type { ReadVolume } from '../snapshot/readPlan.ts';
import { spaceFactor } from '../snapshot/space.ts';
import { orderStorages } from './retain.ts';

/**
 * Before a backup that reads volumes where they are: each storage must be usable and have room for all of it.
 * @returns warnings for the operator
 * @throws StorageError
 */
export async function requireStoragesForRead(
  storages: readonly Storage[],
  plan: {
    readonly volumes: readonly (Pick<ReadVolume, 'target' | 'file' | 'allocatedBytes'> &
      Partial<Pick<ReadVolume, 'reads' | 'kind'>>)[];
  },
  memoryBytes = 0,
): Promise<readonly string[]> {
  refuseTooLarge(storages, plan.volumes);
  const wholeBytes = memoryBytes + allocatedBytesOf(plan.volumes);
  let everyLocal = true;
  for (const storage of storages) {
    let neededBytes = memoryBytes;
    const { freeBytes } = await requireUsable(storage, wholeBytes);
    const isIncrement = ({ reads }: (typeof plan.volumes)[number]): boolean =>
      'parent' in (reads?.[storage.name] ?? {});
    // How much has changed nobody knows before it begins; mostly it is little. What is not shared is copied.
    const isSmall = plan.volumes.some(isIncrement) && (await storage.sharesBlocks());
    for (const volume of plan.volumes)
      if (!isSmall || !isIncrement(volume)) neededBytes += volume.allocatedBytes;
    for (const { kind, file } of plan.volumes)
      everyLocal &&= kind !== 'network' && (await storage.isOnDeviceOf(file));
    requireRoom(storage, freeBytes, neededBytes);
  }
  return everyLocal ? [localOnlyWarning] : [];
}

/** What a quota counts: also what is moved in, or shared with other backups. */
function allocatedBytesOf(volumes: readonly Pick<ReadVolume, 'allocatedBytes'>[]): number {
  return volumes.reduce((sum, { allocatedBytes }) => sum + allocatedBytes, 0);
}

/** What would fail only after hours. */
function refuseTooLarge(
  storages: readonly Storage[],
  volumes: readonly Pick<ReadVolume, 'target' | 'allocatedBytes'>[],
): void {
  if (storages.length > 0 && storages.every(({ kind }) => kind === 'repository')) return;
  const large = volumes.find(({ allocatedBytes }) => allocatedBytes > summedBytesMax);
  if (large === undefined) return;
  throw new StorageError(
    'VOLUME_TOO_LARGE',
    `${large.target} holds ${formatBytes(large.allocatedBytes)}; a directory storage can keep up to ${formatBytes(summedBytesMax)} of a volume`,
    { hint: 'spread what it holds over several volumes, or exclude the machine' },
  );
}

/**
 * Before a backup: each storage must be usable and have room for what cannot be renamed into it.
 * @returns warnings for the operator
 * @throws StorageError
 */
export async function requireStorages(
  storages: readonly Storage[],
  plan: SavePlan,
): Promise<readonly string[]> {
  refuseTooLarge(storages, plan.volumes);
  const wholeBytes = plan.memoryBytes + allocatedBytesOf(plan.volumes);
  const checks = new Map<Storage, StorageCheck>();
  for (const storage of storages) checks.set(storage, await requireUsable(storage, wholeBytes));
  let everyLocal = true;
  const ordered = await orderStorages(storages, plan);
  for (const storage of ordered) {
    let neededBytes = plan.memoryBytes;
    for (const volume of plan.volumes) {
      everyLocal &&= await storage.isOnDeviceOf(volume.file);
      const renamed =
        (await storage.takesByRename(volume.file)) && volume.base === null && storage === ordered.at(-1);
      if (!renamed) neededBytes += volume.allocatedBytes;
    }
    requireRoom(storage, checks.get(storage)?.freeBytes ?? null, neededBytes);
  }
  return everyLocal ? [localOnlyWarning] : [];
}

const localOnlyWarning = 'local-only: every copy of this backup is on the file system of the machine itself';

/**
 * A storage must be there and within its quota.
 * @param neededBytes at least so much is going to be stored
 * @throws StorageError
 */
export async function requireUsable(storage: Storage, neededBytes = 0): Promise<StorageCheck> {
  const check = await storage.check();
  if (check.ok) {
    await requireQuota(storage, neededBytes);
    return check;
  }
  throw new StorageError(
    storageCode(check.problem?.code),
    `storage ${storage.name}: ${check.problem?.message ?? 'cannot be used'}`,
    {
      hint: check.problem?.hint ?? 'stillpoint doctor',
      retryable: true,
    },
  );
}

/**
 * How much of a backup a repository has already shows only when it is written: there, what is stored before counts.
 * @throws StorageError QUOTA_EXCEEDED
 */
async function requireQuota(storage: Storage, neededBytes: number): Promise<void> {
  if (storage.bounds.quotaBytes === null) return;
  const { storedBytes, quotaBytes } = await storage.space();
  if (storedBytes === null || quotaBytes === null) return;
  const added = storage.kind === 'repository' ? 0 : neededBytes;
  if (storedBytes < quotaBytes && storedBytes + added <= quotaBytes) return;
  const space = { storedBytes, quotaBytes, neededBytes: added };
  throw quotaError(storage.name, space, quotaHint(storage.name, storage.kind));
}

/** What there is to say about storages that are nearly full. @throws StorageError */
export async function fullnessWarnings(storages: readonly Storage[]): Promise<readonly string[]> {
  const warnings: string[] = [];
  for (const storage of storages) {
    const warning = fullnessWarning(storage.name, await storage.space(), storage.bounds.warnPercent);
    if (warning !== null) warnings.push(warning);
  }
  return warnings;
}

function requireRoom(storage: Storage, freeBytes: number | null, neededBytes: number): void {
  if (freeBytes === null || freeBytes >= neededBytes * spaceFactor) return;
  throw new StorageError(
    'STORAGE_FULL',
    `storage ${storage.name} has ${formatBytes(freeBytes)} free; the backup may need ${formatBytes(neededBytes * spaceFactor)}`,
    {
      hint: `df -h ${storage.location}; stillpoint list; stillpoint delete BACKUP${storage.kind === 'repository' ? `, then stillpoint storage gc ${storage.name}` : ''}`,
    },
  );
}

/** The code of a storage's own check, where it is one of a storage. */
function storageCode(code: string | undefined): StorageErrorCode {
  const known: readonly StorageErrorCode[] = ['STORAGE_FULL', 'STORAGE_READ_ONLY', 'STORAGE_DENIED'];
  return known.find((candidate) => candidate === code) ?? 'STORAGE_UNREACHABLE';
}
