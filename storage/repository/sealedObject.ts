import { ByteReader, ByteWriter } from './bytes.ts';
import { decode, encode } from './codec.ts';
import { damaged, RepositoryError } from './errors.ts';
import type { KeyPurpose, KeyRing } from './keyRing.ts';
import { objectBytesMax } from './limits.ts';
import { checkVersion, nameOf } from './packFormat.ts';
import { seal, sealBytes, unseal } from './seal.ts';

/*
 * Objects that are no packs: one envelope for all of them (docs/FORMAT.md, "Objects"). An object is bound to its
 * type and repository, and to its name where the name is not the hash of its bytes.
 */

/** Do not modify. */
const objectMagic = Buffer.from('STILLOBJ', 'latin1');
const objectVersion = 1;
const objectHeaderBytes = 40;
/** Where the generation stands in it. */
const generationAt = 12;
const signerIdBytes = 8;
const signatureBytes = 64;

export type ObjectType =
  | 'manifest'
  | 'index'
  | 'mark'
  | 'session'
  | 'deletion'
  | 'fence'
  | 'quarantine'
  | 'swept'
  | 'verdict'
  | 'protection'
  | 'host'
  | 'verification'
  | 'reading';

const typeNumbers = {
  manifest: 1,
  index: 2,
  mark: 3,
  session: 4,
  deletion: 5,
  fence: 6,
  quarantine: 7,
  swept: 8,
  verdict: 9,
  protection: 10,
  host: 11,
  verification: 12,
  reading: 13,
} as const satisfies Record<ObjectType, number>;

/** What changes what can be restored is signed. */
const signedTypes: ReadonlySet<ObjectType> = new Set([
  'manifest',
  'mark',
  'verdict',
  'deletion',
  'fence',
  'quarantine',
  'protection',
  'host',
]);

const codecNumbers = { none: 0, zstd: 1 } as const;

export interface ObjectContext {
  readonly repositoryId: Buffer;
  readonly keys: KeyRing;
}

/** An object that was read. */
export interface OpenedObject {
  readonly type: ObjectType;
  readonly content: Buffer;
}

/** @param name what the object is bound to: its whole name, or the prefix of names that are hashes */
export function sealObject(type: ObjectType, name: string, content: Buffer, context: ObjectContext): Buffer {
  if (content.length === 0 || content.length > objectBytesMax)
    throw new RangeError(`an object of ${content.length} bytes`);
  const generation = context.keys.newestGeneration;
  const encoded = encode(content);
  const header = new ByteWriter()
    .bytes(objectMagic)
    .u16(objectVersion)
    .u8(typeNumbers[type])
    .u8(codecNumbers[encoded.codec])
    .u32(generation)
    .bytes(context.repositoryId)
    .u32(content.length)
    .u32(encoded.bytes.length + sealBytes)
    .finish();
  const key = context.keys.key(generation, purposeOf(type));
  const bound = Buffer.concat([header, Buffer.from(name, 'utf8')]);
  const body = Buffer.concat([header, seal(key, bound, encoded.bytes)]);
  if (!signedTypes.has(type)) return body;
  const described = Buffer.concat([body, context.keys.signerId(generation)]);
  return Buffer.concat([described, context.keys.sign(generation, signedText(name, described))]);
}

/**
 * Reads an object that may come from anybody.
 *
 * @param expected types of which it may be one
 * @throws RepositoryError REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW
 */
export function openObject(
  bytes: Buffer,
  name: string,
  expected: readonly ObjectType[],
  context: ObjectContext,
): OpenedObject {
  const reader = new ByteReader(bytes, name);
  reader.expect(objectMagic, 'object of a repository');
  requireVersion(bytes, name, expected, context, reader.u16());
  const type = nameOf(typeNumbers, reader.u8());
  const codec = nameOf(codecNumbers, reader.u8());
  const generation = reader.u32();
  requireGeneration(bytes, name, expected, context, generation);
  if (!reader.bytes(16).equals(context.repositoryId)) throw reader.fail('it belongs to another repository');
  const rawBytes = reader.u32();
  // What does not compress is sealed as it is, and is longer for it.
  const sealed = reader.bytes(reader.count(objectBytesMax + sealBytes, 1));
  if (type === null || !expected.includes(type)) throw reader.fail('it is of another type');
  if (codec === null || generation === 0) throw reader.fail('its header is not valid');
  if (rawBytes === 0 || rawBytes > objectBytesMax) throw reader.fail(`a content of ${rawBytes} bytes`);
  if (signedTypes.has(type)) checkSignature(bytes, name, reader, { keys: context.keys, generation });
  reader.end();
  const bound = Buffer.concat([bytes.subarray(0, objectHeaderBytes), Buffer.from(name, 'utf8')]);
  const stored = unseal(context.keys.key(generation, purposeOf(type)), bound, sealed);
  if (stored === null) throw damaged(name, 'it is not authentic');
  const content = decode(stored, codec, rawBytes);
  if (content === null) throw damaged(name, 'it does not unpack');
  return { type, content };
}

/**
 * The version stands before all that proves it, so whoever asks for another one may be damaged: what is authentic with
 * the version of this program was written with it.
 * @throws RepositoryError REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW
 */
function requireVersion(
  bytes: Buffer,
  name: string,
  expected: readonly ObjectType[],
  context: ObjectContext,
  version: number,
): void {
  if (version === objectVersion) return;
  const asKnown = Buffer.from(bytes);
  asKnown.writeUInt16BE(objectVersion, objectMagic.length);
  if (isAuthentic(asKnown, name, expected, context)) throw damaged(name, 'its version was changed');
  checkVersion(version, objectVersion, name);
}

/**
 * The same of the generation of the keys: one that is not known may have been made since the keys were read, or be a
 * known one that was changed.
 * @throws RepositoryError REPOSITORY_DAMAGED
 */
function requireGeneration(
  bytes: Buffer,
  name: string,
  expected: readonly ObjectType[],
  context: ObjectContext,
  generation: number,
): void {
  const { newestGeneration } = context.keys;
  if (generation <= newestGeneration) return;
  const asKnown = Buffer.from(bytes);
  for (let known = newestGeneration; known >= 1; known -= 1) {
    asKnown.writeUInt32BE(known, generationAt);
    if (isAuthentic(asKnown, name, expected, context)) throw damaged(name, 'its generation was changed');
  }
}

function isAuthentic(...object: Parameters<typeof openObject>): boolean {
  try {
    openObject(...object);
    return true;
  } catch (error) {
    if (error instanceof RepositoryError) return false;
    throw error;
  }
}

function checkSignature(
  bytes: Buffer,
  name: string,
  reader: ByteReader,
  { keys, generation }: { readonly keys: KeyRing; readonly generation: number },
): void {
  const described = bytes.subarray(0, bytes.length - reader.remainingBytes + signerIdBytes);
  const signerId = reader.bytes(signerIdBytes);
  const signature = reader.bytes(signatureBytes);
  if (!signerId.equals(keys.signerId(generation))) throw reader.fail('who signed it is not known');
  if (!keys.verify(generation, signedText(name, described), signature))
    throw reader.fail('its signature is wrong');
}

function signedText(name: string, described: Buffer): Buffer {
  const nameBytes = Buffer.from(name, 'utf8');
  return new ByteWriter()
    .ascii('stillpoint/1/signature')
    .u16(nameBytes.length)
    .bytes(nameBytes)
    .bytes(described)
    .finish();
}

/** Fences stand where manifests stand, and whoever lists backups reads both. */
function purposeOf(type: ObjectType): KeyPurpose {
  return type === 'manifest' || type === 'fence' || type === 'deletion' ? 'manifest' : 'object';
}
