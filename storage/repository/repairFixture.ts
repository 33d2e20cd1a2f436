import { randomBytes } from 'node:crypto';
import { newId } from '../../common/ids.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import type { AgedRepository } from './collectionFixture.ts';
import { manifestName, packName, prefixes } from './names.ts';
import { type RepairOptions, type RepairReport, repairRepository } from './repair.ts';
import type { Repository } from './repository.ts';
import { backUp, initTestRepository, testChunkBytes, testTime } from './repositoryFixture.ts';

export async function repair(
  repository: Repository,
  options: Partial<RepairOptions> = {},
): Promise<RepairReport> {
  return repairRepository(repository, {
    data: true,
    apply: true,
    at: testTime,
    packSizeBytes: 1024,
    isAlone: false,
    ...options,
  });
}

export interface DamagedRepository {
  readonly store: ObjectStore;
  /** Backups that nothing is missing of. */
  readonly kept: AgedRepository['kept'];
  /** The backup whose manifest is damaged. */
  readonly unreadableId: string;
  /** What is damaged, with its bytes. */
  readonly damaged: ReadonlyMap<string, Buffer>;
}

/**
 * A repository with every damage that a repair has a cure for, and with nothing lost that a backup needs: a damaged
 * manifest, a damaged index, packs that none names, a pack cut short behind its last blob, a damaged backup of a host,
 * and a configuration of which one copy is damaged.
 */
export async function damagedRepository(): Promise<DamagedRepository> {
  const store = new ObjectStore();
  const repository = await initTestRepository(store.client(), 4096);
  const volumes = [smallChunks(3), smallChunks(3)] as const;
  const first = await backUp(repository, volumes[0]);
  const [firstPack = ''] = await dataPacksOf(repository);
  const firstIndexes = store.names(prefixes.indexes);
  const second = await backUp(repository, volumes[1]);
  const someIndex = store.names(prefixes.indexes).find((name) => !firstIndexes.includes(name)) ?? '';
  const kept = [
    { manifest: first.manifest, volume: volumes[0] },
    { manifest: second.manifest, volume: volumes[1] },
  ];
  const { manifest } = await backUp(repository, smallChunks(2));
  store.truncate(firstPack, 16);
  const hostName = `${prefixes.hosts}${newId()}`;
  await store.client().create(hostName, [randomBytes(200)]);
  const names = [someIndex, manifestName(manifest.id), 'config/00000001'];
  for (const name of names) store.damage(name, 999);
  const damaged = new Map(
    [someIndex, manifestName(manifest.id), hostName].map((name) => [name, store.bytesOf(name)]),
  );
  return { store, kept, unreadableId: manifest.id, damaged };
}

/** Chunks that take little, in one volume. */
function smallChunks(count: number): Buffer {
  return Buffer.concat(
    Array.from({ length: count }, () =>
      Buffer.concat([randomBytes(300), Buffer.alloc(testChunkBytes - 300)]),
    ),
  );
}

/** Names of packs with data, in the order of the index. */
export async function dataPacksOf(repository: Repository): Promise<readonly string[]> {
  repository.forgetIndex();
  const { packs } = await repository.index();
  return packs.filter(({ kind }) => kind === 'data').map(({ id }) => packName(id));
}
