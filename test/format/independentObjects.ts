import { createPrivateKey, createPublicKey, verify } from 'node:crypto';
import type { Masters } from './independentKeys.ts';
import {
  ascii,
  check,
  decompress,
  derive,
  failureOf,
  fromHex,
  limit,
  mebibyte,
  Newer,
  sha256,
  u16,
  unseal,
} from './independentNotation.ts';
import { isChunkSize } from './independentPacks.ts';

/* Of the independent reader: docs/FORMAT.md, "Objects" and "Manifests". */

export const types = {
  manifest: 1,
  index: 2,
  mark: 3,
  session: 4,
  deletion: 5,
  fence: 6,
  quarantine: 7,
  sweep: 8,
  verdict: 9,
  protection: 10,
  host: 11,
  verification: 12,
  reading: 13,
} as const;

/** What an object says that is JSON. */
export type Document = Readonly<Record<string, unknown>>;

export interface Content {
  root: string;
  sizeBytes: number;
  chunkSizeBytes: number;
}

export interface Manifest {
  formatVersion: number;
  id: string;
  requires: string[];
  pointInTime: string;
  machine: { name: string };
  mode: string;
  consistency: string;
  group?: { machines: string[] };
  volumes: {
    target: string;
    virtualSizeBytes: number;
    kind?: string;
    format: string;
    read: string;
    encrypted?: boolean;
    content: Content;
  }[];
  memory?: { content: Content; running: boolean };
  definition: { content: Content; autostart: boolean };
  extras: { kind: string; content: Content; source?: string; name?: string }[];
}

interface Host {
  manifest: string;
  files: Record<string, string>;
}

/** Those that are signed, and those that are sealed with the manifest key. */
const signedTypes: readonly number[] = [1, 3, 5, 6, 7, 9, 10, 11];
const manifestTypes: readonly number[] = [1, 5, 6];

const collectionTypes: readonly number[] = [types.mark, types.verdict, types.sweep];

const idsPerPage = 1024;
const ed25519Private = Buffer.from('302e020100300506032b657004220420', 'hex');

/** Whose keys and bytes an object must have. */
export interface Owner {
  readonly masters: Masters;
  readonly repositoryId: Buffer;
}

/** @param name what it is bound to @param expected types of which it may be one */
export function openObject(
  bytes: Buffer,
  name: string,
  expected: readonly number[],
  owner: Owner,
): { readonly type: number; readonly content: Buffer } {
  check(bytes.length >= 40 && bytes.toString('latin1', 0, 8) === 'STILLOBJ', 'the beginning of an object');
  if (bytes.readUInt16BE(8) !== 1) throw otherVersion(bytes, name, expected, owner);
  const [type, codec, generation] = [bytes.readUInt8(10), bytes.readUInt8(11), bytes.readUInt32BE(12)];
  check(expected.includes(type), 'the type of an object');
  check(bytes.subarray(16, 32).equals(owner.repositoryId), 'the repository of an object');
  const length = bytes.readUInt32BE(32);
  limit(length <= (type === types.manifest ? 4 : 64) * mebibyte, 'the length of a content');
  check(length > 0, 'the length of a content');
  const end = 40 + bytes.readUInt32BE(36);
  check(bytes.length === end + (signedTypes.includes(type) ? 72 : 0), 'the length of an object');
  const master = owner.masters.get(generation);
  check(master !== undefined, 'the generation of an object');
  if (signedTypes.includes(type)) checkSignature(bytes, name, end, derive(master, 'sign'));
  const key = derive(master, manifestTypes.includes(type) ? 'manifest' : 'object');
  const stored = unseal(key, Buffer.concat([bytes.subarray(0, 40), ascii(name)]), bytes.subarray(40, end));
  return { type, content: decompress(codec, stored, length) };
}

/** What is authentic as soon as the version is 1 is damaged; anything else may be newer. */
function otherVersion(
  bytes: Buffer,
  ...how: [name: string, expected: readonly number[], owner: Owner]
): Error {
  const asKnown = Buffer.from(bytes);
  asKnown.writeUInt16BE(1, 8);
  const isDamaged = failureOf(() => openObject(asKnown, ...how)) === null;
  const what = `an object has version ${bytes.readUInt16BE(8)}`;
  return isDamaged ? new Error(`${what} and is of version 1`) : new Newer(what);
}

function checkSignature(bytes: Buffer, name: string, end: number, seed: Buffer): void {
  const publicKey = createPublicKey(
    createPrivateKey({ key: Buffer.concat([ed25519Private, seed]), format: 'der', type: 'pkcs8' }),
  );
  const signer = sha256(publicKey.export({ format: 'der', type: 'spki' }).subarray(-32)).subarray(0, 8);
  check(bytes.subarray(end, end + 8).equals(signer), 'the signer of an object');
  const text = [ascii('stillpoint/1/signature'), u16(name.length), ascii(name), bytes.subarray(0, end + 8)];
  check(verify(null, Buffer.concat(text), publicKey, bytes.subarray(end + 8)), 'the signature of an object');
}

/**
 * What stands in an object of any type but an index, checked as far as the page says.
 * @param subject what it must be about by its name: an id, or the number of a collection
 */
export function parseDocument(type: number, content: Buffer, subject: string): Document {
  const document: Document = JSON.parse(content.toString('utf8'));
  if (document['formatVersion'] !== 1)
    throw new Newer(`an object has formatVersion ${String(document['formatVersion'])}`);
  if (type === types.manifest) parseManifest(content, subject);
  else if (type === types.host) checkHost(JSON.parse(content.toString('utf8')), subject);
  else if (type === types.quarantine) check(document['packId'] === subject, 'the pack of a quarantine');
  else if (collectionTypes.includes(type))
    check(numbered(Number(document['collection'])) === subject, 'the number of a collection');
  else check(document['backupId'] === subject, 'the backup that an object is about');
  if (type === types.mark || type === types.verdict) checkPacks(document['packs']);
  checkRecord(type, document);
  return document;
}

function checkPacks(packs: unknown): void {
  check(Array.isArray(packs), 'the packs of a collection');
  limit(packs.length <= 500_000, 'the number of packs of a collection');
  for (const pack of packs) fromHex(String(pack), 32, 'a pack of a collection');
}

/** What is said of a backup beside it. */
function checkRecord(type: number, document: Document): void {
  const { protected: isProtected, reason, at, ok, picture } = document;
  if (type === types.protection) {
    check(typeof isProtected === 'boolean', 'whether a backup is protected');
    check(reason === null || typeof reason === 'string', 'the reason of a protection');
  }
  if (type === types.reading || type === types.verification)
    check(typeof ok === 'boolean' && typeof at === 'string', 'how a backup came out');
  if (type === types.verification)
    check(picture === null || typeof picture === 'string', 'the picture of a verification');
}

function checkHost({ manifest, files }: Host, id: string): void {
  const { manifestSha256, ...described } = JSON.parse(manifest);
  const digest = sha256(Buffer.from(JSON.stringify(described, null, 2))).toString('hex');
  check(manifestSha256 === digest, 'the digest of the manifest of a host');
  check(described.id === id, 'the id of a host');
  const items: { file: string; sha256: string }[] = described.items;
  for (const item of items)
    check(
      sha256(Buffer.from(files[item.file] ?? '')).toString('hex') === item.sha256,
      'the digest of a file of a host',
    );
}

/** @param id of the backup that it must be */
export function parseManifest(content: Buffer, id: string): Manifest {
  const manifest: Manifest = JSON.parse(content.toString('utf8'));
  if (manifest.formatVersion !== 1) throw new Newer(`a manifest has version ${manifest.formatVersion}`);
  const { requires, volumes, memory, definition, extras, group } = manifest;
  limit(requires.length <= 64, 'what a manifest requires');
  if (requires.length > 0) throw new Newer(`a manifest requires ${requires.join(', ')}`);
  check(manifest.id === id, 'the id of a manifest');
  check(/^[^/]{1,250}$/.test(manifest.machine.name), 'the name of a machine');
  checkTime(manifest.pointInTime);
  checkOneOf(manifest.mode, ['live', 'save', 'disk', 'offline']);
  checkOneOf(manifest.consistency, ['memory', 'filesystem', 'crash', 'offline']);
  check(group === undefined || group.machines.length >= 2, 'the machines of a group');
  check(volumes.length > 0, 'the number of volumes');
  check(new Set(volumes.map(({ target }) => target)).size === volumes.length, 'the target of a volume');
  for (const volume of volumes) {
    checkOneOf(volume.format, ['qcow2', 'raw']);
    checkOneOf(volume.read, ['full', 'increment']);
    checkOneOf(volume.kind, [undefined, 'block', 'network']);
    checkOneOf(volume.encrypted, [undefined, true]);
    const isWhole = volume.content.sizeBytes === volume.virtualSizeBytes;
    check(volume.encrypted === true || isWhole, 'the size of a volume');
  }
  for (const { kind, source, name } of extras) {
    checkOneOf(kind, ['nvram', 'kernel', 'initrd', 'dtb', 'loader', 'tpm', 'network', 'pool', 'snapshot']);
    const isDefinition = ['network', 'pool', 'snapshot'].includes(kind);
    check(typeof (isDefinition ? name : source) === 'string', 'where an extra is from');
  }
  for (const part of [...volumes, ...extras, definition, ...(memory === undefined ? [] : [memory])])
    checkContent(part.content);
  return manifest;
}

function checkContent({ root, sizeBytes, chunkSizeBytes }: Content): void {
  fromHex(root, 32, 'the root of a stream');
  check(isChunkSize(chunkSizeBytes), 'the chunk size of a stream');
  check(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0, 'the length of a stream');
  limit(pagesOf(sizeBytes, chunkSizeBytes) <= 131_072, 'the number of pages of a stream');
}

export function pagesOf(sizeBytes: number, chunkSizeBytes: number): number {
  return Math.ceil(Math.ceil(sizeBytes / chunkSizeBytes) / idsPerPage);
}

function checkTime(text: string): void {
  check(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/.test(text), 'a time');
}

function checkOneOf(value: unknown, known: readonly unknown[]): void {
  check(known.includes(value), `the value ${String(value)}`);
}

/** How numbers stand in names. */
export function numbered(value: number): string {
  return String(value).padStart(8, '0');
}
