import { randomBytes } from 'node:crypto';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import { newId } from '../../common/ids.ts';
import { ObjectStore, type SimulatedClient } from '../../test/sim/objectStore.ts';
import type { Backend } from '../backends/backend.ts';
import type { BackupManifest, ContentReference } from './backupManifest.ts';
import type { Secret } from './keySlot.ts';
import { Repository } from './repository.ts';
import type { RepositorySession } from './session.ts';
import { bufferSource, writeStream } from './streamWriter.ts';

/** What the tests of repositories share. */
export const testChunkBytes = 64 * 1024;
export const testSecret: Secret = { kind: 'keyFile', key: Buffer.alloc(32, 9) };
export const testTime = '2026-11-21T10:00:00.000Z';

export async function initTestRepository(
  backend: Backend,
  packSizeBytes = 256 * 1024,
  chunkSizeBytes = testChunkBytes,
): Promise<Repository> {
  return Repository.init(backend, {
    secret: testSecret,
    label: 'test',
    createdAt: testTime,
    chunkSizeBytes,
    packSizeBytes,
  });
}

export interface TestStage {
  readonly store: ObjectStore;
  readonly client: SimulatedClient;
  readonly repository: Repository;
}

export async function testStage(): Promise<TestStage> {
  const store = new ObjectStore();
  const client = store.client();
  return { store, client, repository: await initTestRepository(client) };
}

/** A volume in memory, with everything that is zero declared so. */
export function volumeSource(content: Buffer): VolumeSource {
  const source = bufferSource(content);
  return { ...source, extents: () => Promise.resolve(zeroExtents(content)) };
}

function zeroExtents(content: Buffer): readonly Extent[] {
  const stepBytes = 4096;
  const extents: Extent[] = [];
  for (let offsetBytes = 0; offsetBytes < content.length; offsetBytes += stepBytes) {
    const piece = content.subarray(offsetBytes, offsetBytes + stepBytes);
    const zero = piece.every((byte) => byte === 0);
    const last = extents.at(-1);
    if (last?.zero === zero)
      extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + piece.length };
    else extents.push({ offsetBytes, lengthBytes: piece.length, zero });
  }
  return extents;
}

/** Random bytes in so many chunks, every fourth one of them zeros. */
export function someVolume(chunks: number, tailBytes = 0): Buffer {
  const parts = Array.from({ length: chunks }, (_, chunk) =>
    chunk % 4 === 3 ? Buffer.alloc(testChunkBytes) : randomBytes(testChunkBytes),
  );
  return Buffer.concat([...parts, randomBytes(tailBytes)]);
}

export function testManifest(
  id: string,
  volume: ContentReference,
  definition: ContentReference,
  change: Partial<BackupManifest> = {},
): BackupManifest {
  return {
    formatVersion: 1,
    requires: [],
    id,
    writer: 'test',
    machine: { name: 'vm', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' },
    host: { name: 'host', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: testTime,
    mode: 'disk',
    modeReason: 'test',
    consistency: 'crash',
    pauseMs: null,
    volumes: [
      {
        target: 'vda',
        format: 'qcow2',
        virtualSizeBytes: volume.sizeBytes,
        storedBytes: 0,
        source: '/images/vm.qcow2',
        owner: { uid: 0, gid: 0, mode: 0o600 },
        read: 'full',
        content: volume,
      },
    ],
    definition: { content: definition, autostart: false },
    extras: [],
    steps: [],
    labels: {},
    ...change,
  };
}

/** Stores a volume as one backup of one machine. */
export async function backUp(
  repository: Repository,
  volume: Buffer,
  options: {
    readonly id?: string | undefined;
    readonly afterFence?: boolean | undefined;
    readonly parent?: BackupManifest | undefined;
    readonly changes?: readonly Extent[] | undefined;
    /** As the storage does it: where not all of the parent can be reused, everything is read. */
    readonly looksAtParent?: boolean | undefined;
    /** Called when everything is stored and nothing committed. */
    readonly beforeCommit?: ((session: RepositorySession) => Promise<void>) | undefined;
  } = {},
): Promise<{ readonly manifest: BackupManifest; readonly session: RepositorySession }> {
  const id = options.id ?? newId();
  const { afterFence } = options;
  const session = await repository.begin({ backupId: id, startedAt: testTime, afterFence });
  const parentContent = options.parent?.volumes[0]?.content;
  const isBuiltOn =
    parentContent !== undefined && (options.looksAtParent !== true || (await session.holds(parentContent)));
  const content = await writeStream(volumeSource(volume), session, {
    chunkSizeBytes: testChunkBytes,
    ...(!isBuiltOn
      ? {}
      : {
          increment: { parent: await repository.openStream(parentContent), changes: options.changes ?? [] },
        }),
  });
  const definition = await writeStream(bufferSource(Buffer.from('<domain/>')), session, {
    chunkSizeBytes: testChunkBytes,
  });
  await options.beforeCommit?.(session);
  const { manifest } = await session.commit(testManifest(id, content, definition));
  return { manifest, session };
}

/** The volume of a backup, every byte. */
export async function readVolume(repository: Repository, manifest: BackupManifest): Promise<Buffer> {
  const content = manifest.volumes[0]?.content;
  if (content === undefined) throw new Error('the backup has no volume');
  return (await repository.openStream(content)).readAll();
}
