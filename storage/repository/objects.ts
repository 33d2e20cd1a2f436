import { hash } from 'node:crypto';
import type { Backend, CallOptions } from '../backends/backend.ts';
import type { ChunkNamer } from './chunkId.ts';
import type { ChunkWorkers } from './chunkWorkers.ts';
import { damaged } from './errors.ts';
import type { KeyRing } from './keyRing.ts';
import { objectBytesMax } from './limits.ts';
import type { LockedStore } from './lockedStore.ts';
import { prefixes } from './names.ts';
import { type ObjectType, type OpenedObject, openObject, sealObject } from './sealedObject.ts';

/** An open repository, as its parts know it. */
export interface RepositoryContext {
  readonly backend: Backend;
  /** The same place where it locks what is stored; `null` where it does not. */
  readonly lock: LockedStore | null;
  /** 16 bytes. */
  readonly repositoryId: Buffer;
  readonly keys: KeyRing;
  readonly namer: ChunkNamer;
  /** Threads for what takes time. */
  readonly workers: ChunkWorkers;
  /** How much work is put into what chunks take: of zstd, 1 to 19; 0 leaves them as they are. */
  readonly compressionLevel: number;
  /** The name of the storage, for what an error says to type. */
  readonly storage: string;
}

/** What index objects are bound to: their names are hashes of their bytes. */
export const indexBoundName = 'indexes';

/** An envelope, a signature and an overhead of zstd are less than this. */
const envelopeBytesMax = 1024;
/** More than that no object but a pack has. */
export const sealedBytesMax = objectBytesMax + envelopeBytesMax;

/**
 * Creates an object, and finds out what the answer alone does not tell: a call whose answer was lost may be repeated,
 * and finds the name taken by its own bytes.
 */
export async function createOnce(
  backend: Backend,
  name: string,
  parts: readonly Buffer[],
  options: CallOptions = {},
): Promise<'created' | 'same' | 'taken'> {
  if ((await backend.create(name, parts, options)) === 'created') return 'created';
  const bytes = Buffer.concat(parts);
  const range = { offsetBytes: 0, lengthBytes: bytes.length + 1 };
  const there = await backend.read(name, { ...options, range });
  return there?.equals(bytes) === true ? 'same' : 'taken';
}

/**
 * The whole of an object, `null` where there is none. What is longer than anything that we write is not read: it need
 * not fit into memory. Rejects with REPOSITORY_DAMAGED.
 */
export async function readWhole(
  { backend }: Pick<RepositoryContext, 'backend'>,
  name: string,
  bytesMax: number,
  options: CallOptions,
): Promise<Buffer | null> {
  const range = { offsetBytes: 0, lengthBytes: bytesMax + 1 };
  const bytes = await backend.read(name, { ...options, range });
  if (bytes !== null && bytes.length > bytesMax) throw damaged(name, `it is longer than ${bytesMax} bytes`);
  return bytes;
}

/** Seals an object and creates it under its own name. Sealing is deterministic, so repeating it finds itself. */
export async function putObject(
  context: RepositoryContext,
  type: ObjectType,
  name: string,
  content: Buffer,
  options: CallOptions = {},
): Promise<'created' | 'same' | 'taken'> {
  return createOnce(context.backend, name, [sealObject(type, name, content, context)], options);
}

/** Reads an object, or `null` when there is none. Rejects with REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW. */
export async function getObject(
  context: RepositoryContext,
  name: string,
  types: readonly ObjectType[],
  options: CallOptions = {},
): Promise<OpenedObject | null> {
  const bytes = await readWhole(context, name, sealedBytesMax, options);
  return bytes === null ? null : openObject(bytes, name, types, context);
}

/** Creates an object whose name is the hash of its bytes; returns that hash. */
export async function putIndex(
  context: RepositoryContext,
  content: Buffer,
  options: CallOptions = {},
): Promise<Buffer> {
  const bytes = sealObject('index', indexBoundName, content, context);
  const id = hash('sha256', bytes, 'buffer');
  const name = `${prefixes.indexes}${id.toString('hex')}`;
  if ((await createOnce(context.backend, name, [bytes], options)) === 'taken')
    throw damaged(name, 'it does not hold what its name says');
  return id;
}
