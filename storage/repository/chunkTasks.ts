import { createHash } from 'node:crypto';
import {
  type BlobFault,
  type BlobKey,
  type BlobOrder,
  openCompared,
  type SealedBlob,
  sealBlob,
} from './blob.ts';
import { giveBack, ownsMemory } from './ownMemory.ts';
import { hmac } from './seal.ts';

/*
 * What can be given to another thread (chunkWorkers.ts), and how it is done there. Everything goes by structured clone:
 * memory that is shared stays shared, keys never leave the process.
 */

/** The id of a chunk. */
export interface IdentifyTask {
  readonly kind: 'identify';
  readonly idKey: Uint8Array;
  readonly content: Uint8Array;
}

/** A chunk becomes a blob. */
export interface SealTask {
  readonly kind: 'seal';
  readonly content: Uint8Array;
  readonly order: BlobOrder;
}

/** The SHA-256 of parts of shared memory, one behind the other. */
export interface DigestTask {
  readonly kind: 'digest';
  readonly parts: readonly Uint8Array[];
}

/** Blobs that were read with one call become chunks again, each compared with its id. */
export interface OpenTask {
  readonly kind: 'open';
  /** Is used up. */
  readonly bytes: Uint8Array;
  readonly blobs: readonly BlobToOpen[];
  /** Of these bytes, which are then compared with it, too. */
  readonly digest?: Uint8Array | undefined;
}

export interface BlobToOpen extends BlobKey {
  /** In the bytes; with the tag. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly id: Uint8Array;
  readonly idKey: Uint8Array;
  /** Gets the content, of which it has the length; without it the content is compared and dropped. */
  readonly target?: Uint8Array | undefined;
}

export type ChunkTask = IdentifyTask | SealTask | DigestTask | OpenTask;

/** What comes of a task of each kind. */
export interface ChunkResults {
  readonly identify: Uint8Array;
  readonly seal: SealedBlob;
  readonly digest: Uint8Array;
  /** For each blob `null`, or what is wrong with it. */
  readonly open: readonly (BlobFault | null)[] | 'is not what its digest says';
}

export type ResultOf<Task extends ChunkTask> = ChunkResults[Task['kind']];

/** Does a task on this thread. @throws Error when a chunk does not come out as it went in */
export function perform<Task extends ChunkTask>(task: Task): ResultOf<Task>;
export function perform(task: ChunkTask): ChunkResults[keyof ChunkResults] {
  switch (task.kind) {
    case 'identify':
      return hmac(task.idKey, task.content);
    case 'seal':
      return sealBlob(task.content, task.order);
    case 'digest':
      return digestOf(task.parts);
    default:
      return open(task);
  }
}

/** The memory in a task that goes over to the thread that does it. */
export function givenAway(task: ChunkTask): readonly ArrayBuffer[] {
  return task.kind === 'open' && ownsMemory(task.bytes) ? [task.bytes.buffer] : [];
}

/** The memory in a result that goes over to the thread that asked. */
export function givenBack(result: ChunkResults[keyof ChunkResults]): readonly ArrayBuffer[] {
  return typeof result === 'object' && 'body' in result && ownsMemory(result.body)
    ? [result.body.buffer]
    : [];
}

function digestOf(parts: readonly Uint8Array[]): Buffer {
  const digest = createHash('sha256');
  for (const part of parts) digest.update(part);
  return digest.digest();
}

function open({ bytes, blobs, digest }: OpenTask): ChunkResults['open'] {
  if (digest !== undefined && !digestOf([bytes]).equals(digest)) return 'is not what its digest says';
  const faults = blobs.map(({ offsetBytes, lengthBytes, target, ...how }) => {
    const content = openCompared(bytes.subarray(offsetBytes, offsetBytes + lengthBytes), how);
    if (typeof content === 'string') return content;
    target?.set(content);
    giveBack(content);
    return null;
  });
  giveBack(bytes);
  return faults;
}
