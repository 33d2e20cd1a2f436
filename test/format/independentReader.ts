import {
  type Config,
  isProved,
  type Masters,
  openSlot,
  parseConfig,
  parseSlot,
  type ReaderSecret,
  type UnprovedConfig,
} from './independentKeys.ts';
import {
  check,
  derive,
  failureOf,
  fromHex,
  hmac,
  limit,
  Newer,
  orNull,
  sha256,
  zeroId,
} from './independentNotation.ts';
import {
  type Content,
  type Document,
  type Manifest,
  numbered,
  openObject,
  pagesOf,
  parseDocument,
  parseManifest,
  types,
} from './independentObjects.ts';
import { type Entry, openBlob, packKey, packTable, parseIndex } from './independentPacks.ts';
import { IndependentStore } from './independentStore.ts';

/*
 * A second reader of repositories, written from docs/FORMAT.md alone: with the files beside it that it imports it uses
 * nothing of Stillpoint, and is as plain as it can be. What it cannot read, the specification does not say.
 */

/** A backup and the bytes of each of its streams. */
export interface ReadBackup {
  readonly id: string;
  readonly machine: string;
  readonly pointInTime: string;
  readonly streams: ReadonlyMap<string, Buffer>;
}

/** What is said of a backup beside it. */
export type RecordFolder = 'protections' | 'verifications' | 'readings';

interface Place {
  readonly pack: string;
  /** Of the pack, where an index tells it. */
  readonly length: number;
  readonly entry: Entry;
}

const uuid = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}';
const attempt = `(${uuid})(?:\\.(?:[2-9]|[1-9][0-9]{1,3}))?`;

/** Names of objects, what they are, and as the first group what they are about. Others are nobody's. */
const objectNames: readonly (readonly [RegExp, readonly number[]])[] = [
  [new RegExp(`^manifests/${attempt}$`), [types.manifest, types.fence]],
  [new RegExp(`^deletions/(${uuid})$`), [types.deletion]],
  [new RegExp(`^sessions/${attempt}$`), [types.session]],
  [/^marks\/([0-9]{8})$/, [types.mark]],
  [/^verdicts\/([0-9]{8})$/, [types.verdict]],
  [/^swept\/([0-9]{8})$/, [types.sweep]],
  [/^quarantine\/([0-9a-f]{64})$/, [types.quarantine]],
  [new RegExp(`^protections/(${uuid})/[0-9]{8}$`), [types.protection]],
  [new RegExp(`^verifications/(${uuid})/[0-9]{8}$`), [types.verification]],
  [new RegExp(`^readings/(${uuid})/[0-9]{8}$`), [types.reading]],
  [new RegExp(`^hosts/(${uuid})$`), [types.host]],
];

const recordFolders: readonly RecordFolder[] = ['protections', 'verifications', 'readings'];
const recordsMax = 10_000;
const configCopiesMax = 16;
const slotsMax = 64;

/** Reads a repository in a directory. */
export class IndependentReader {
  readonly config: Config;
  /** Index objects that count no more. */
  readonly replaced = new Set<string>();
  readonly #store: IndependentStore;
  readonly #secret: ReaderSecret;
  readonly #masters: Masters;
  readonly #repositoryId: Buffer;
  readonly #places = new Map<string, Place[]>();
  /** Packs whose blobs are known, and index objects that were read. */
  readonly #packs = new Set<string>();
  readonly #indexes = new Set<string>();

  constructor(root: string, secret: ReaderSecret) {
    this.#store = new IndependentStore(root);
    this.#secret = secret;
    const candidates = this.#configs();
    const found = candidates.flatMap((candidate) =>
      this.#rings(candidate.config.repositoryId)
        .filter((ring) => isProved(candidate, ring))
        .map((ring) => ({ ...candidate, ring })),
    );
    const [proved] = found;
    if (proved === undefined) throw new Error('no slot opens with this secret');
    this.config = proved.config;
    this.#masters = new Map(
      [...proved.ring].filter(([generation]) => generation <= proved.config.keyGeneration),
    );
    this.#repositoryId = fromHex(
      this.config.repositoryId.replaceAll('-', ''),
      16,
      'the id of the repository',
    );
    this.#readIndexes();
  }

  /** Every backup that exists, in the order of their ids. One that is damaged hides no other. */
  backups(): ReadBackup[] {
    return this.#store.names('manifests').flatMap((name) => {
      const id = this.#subjectOf(name);
      if (id === null || this.#store.isThere(`deletions/${id}`)) return [];
      const manifest = this.#manifest(name, id);
      return manifest === null ? [] : [this.#backup(manifest)];
    });
  }

  /** By name, every object in a folder of objects that is sound. */
  documents(folder: string): ReadonlyMap<string, Document> {
    const documents = new Map<string, Document>();
    for (const name of this.#store.names(folder)) {
      const document = orNull(() => this.#document(name, this.#store.read(name)));
      if (document !== null) documents.set(name, document);
    }
    return documents;
  }

  /** The newest record about each backup, by its id; `null` for one that is damaged. */
  newest(folder: RecordFolder): ReadonlyMap<string, Document | null> {
    const newest = new Map<string, Document | null>();
    const sound = this.documents(folder);
    for (const name of this.#store.names(folder)) {
      const id = this.#subjectOf(name);
      if (id !== null && Number(name.slice(-8)) <= recordsMax) newest.set(id, sound.get(name) ?? null);
    }
    return newest;
  }

  /** Which backups may not be deleted, each with the reason. A newest record that is damaged protects. */
  protections(): ReadonlyMap<string, unknown> {
    const newest = [...this.newest('protections')];
    return new Map(
      newest
        .filter(([, record]) => record === null || record['protected'] === true)
        .map(([id, record]) => [id, record === null ? 'damaged' : record['reason']]),
    );
  }

  /** The collection that goes on or comes next, and whether it is past its mark and its verdict. */
  collection(): { readonly number: number; readonly marked: boolean; readonly judged: boolean } {
    let number = 1;
    while (this.#store.isThere(`swept/${numbered(number)}`)) number++;
    const isThere = (folder: string) => this.#store.isThere(`${folder}/${numbered(number)}`);
    return { number, marked: isThere('marks'), judged: isThere('verdicts') };
  }

  /** Everything in the store that is damaged, each with what is wrong. */
  problems(): ReadonlyMap<string, string> {
    const problems = new Map<string, string>();
    for (const name of this.#store.names('.')) {
      const problem = failureOf(() => this.#examine(name, this.#store.read(name)));
      if (problem !== null) problems.set(name, problem);
    }
    return problems;
  }

  /** What is wrong with the bytes of an object of this name; `null` too for names that a reader does not know. */
  problemOf(name: string, bytes: Buffer): string | null {
    return failureOf(() => this.#examine(name, bytes));
  }

  #examine(name: string, bytes: Buffer): void {
    const folder = name.slice(0, name.indexOf('/'));
    const last = name.slice(name.lastIndexOf('/') + 1);
    const isHash = /^[0-9a-f]{64}$/.test(last);
    if (/^config\/[0-9]{8}(\.[1-9][0-9]*)?$/.test(name))
      check(
        isProved(parseConfig(bytes, Number(last.slice(0, 8))), this.#masters),
        'the HMAC of a configuration',
      );
    else if (/^keys\/[0-9a-f]{16}$/.test(name)) this.#examineSlot(bytes, last);
    else if (folder === 'indexes' && isHash) this.#openIndex(bytes, last);
    else if (folder === 'packs' && isHash) this.#examinePack(bytes, last);
    else if (this.#subjectOf(name) !== null) this.#document(name, bytes);
  }

  /** A slot of another kind of secret can only be looked at. */
  #examineSlot(bytes: Buffer, name: string): void {
    const slot = parseSlot(bytes, name);
    check(slot.repositoryId === this.config.repositoryId, 'the repository of a key slot');
    const isOurs = slot.kind in this.#secret;
    check(!isOurs || openSlot(slot, this.#secret) !== null, 'what is sealed in a key slot');
  }

  #examinePack(bytes: Buffer, name: string): void {
    check(sha256(bytes).toString('hex') === name, 'the name of a pack');
    const key = this.#packKey(bytes);
    for (const entry of packTable(bytes, key)) this.#openChunk(bytes, key, entry);
  }

  // Configuration and keys

  /** The newest configuration, in each of its copies that could be one. */
  #configs(): readonly UnprovedConfig[] {
    let revision = 0;
    while ([1, 2].some((copy) => this.#store.isThere(configName(revision + 1, copy)))) revision++;
    const candidates: UnprovedConfig[] = [];
    let problem: unknown = new Error('there is no repository');
    for (let copy = 1; copy <= configCopiesMax; copy++) {
      const name = configName(revision, copy);
      if (!this.#store.isThere(name) && copy > 2) break;
      try {
        if (this.#store.isThere(name)) candidates.push(parseConfig(this.#store.read(name), revision));
      } catch (error) {
        problem = error;
      }
    }
    if (candidates.length === 0) throw problem;
    return candidates;
  }

  /** What the secret opens. */
  #rings(repositoryId: string): readonly Masters[] {
    return this.#store
      .names('keys')
      .slice(0, slotsMax)
      .flatMap((name) => {
        const slot = orNull(() => parseSlot(this.#store.read(name), name.slice('keys/'.length)));
        const ring = slot?.repositoryId === repositoryId ? openSlot(slot, this.#secret) : null;
        return ring === null ? [] : [ring];
      });
  }

  #master(generation: number): Buffer {
    const master = this.#masters.get(generation);
    if (master === undefined) throw new Error(`no master key of generation ${generation}`);
    return master;
  }

  // Objects

  /** What an object is about by its name; `null` for a name that nobody knows. */
  #subjectOf(name: string): string | null {
    for (const [pattern] of objectNames) {
      const match = pattern.exec(name);
      if (match?.[1] !== undefined) return match[1];
    }
    return null;
  }

  #open(name: string, bytes: Buffer): { readonly type: number; readonly content: Buffer } {
    const expected = objectNames.find(([pattern]) => pattern.test(name))?.[1] ?? [];
    return openObject(bytes, name, expected, { masters: this.#masters, repositoryId: this.#repositoryId });
  }

  #document(name: string, bytes: Buffer): Document {
    const { type, content } = this.#open(name, bytes);
    const isRecord = recordFolders.some((folder) => name.startsWith(`${folder}/`));
    limit(!isRecord || Number(name.slice(-8)) <= recordsMax, 'the number of a record');
    return parseDocument(type, content, this.#subjectOf(name) ?? '');
  }

  /** The manifest of an attempt; `null` for a fence, and for what is damaged. */
  #manifest(name: string, id: string): Manifest | null {
    return orNull(() => {
      const { type, content } = this.#open(name, this.#store.read(name));
      return type === types.manifest ? parseManifest(content, id) : null;
    });
  }

  #backup({ id, machine, pointInTime, volumes, memory, definition, extras }: Manifest): ReadBackup {
    const streams = new Map<string, Buffer>();
    for (const { target, content } of volumes) streams.set(target, this.#stream(content));
    if (memory !== undefined) streams.set('memory', this.#stream(memory.content));
    streams.set('definition', this.#stream(definition.content));
    // Of definitions there may be several of a kind.
    for (const { kind, name, content } of extras)
      streams.set(streams.has(kind) ? `${kind} ${name}` : kind, this.#stream(content));
    return { id, machine: machine.name, pointInTime, streams };
  }

  // Indexes and packs

  /**
   * Reads the indexes that are new; one that is damaged is passed over, one of a newer version is an error. Returns
   * whether they name packs that were not known.
   */
  #readIndexes(): boolean {
    const known = this.#packs.size;
    const indexes = this.#store.names('indexes').flatMap((name) => {
      if (this.#indexes.has(name)) return [];
      this.#indexes.add(name);
      try {
        return [{ name, ...this.#openIndex(this.#store.read(name), name.slice('indexes/'.length)) }];
      } catch (error) {
        if (error instanceof Newer) throw error;
        return [];
      }
    });
    for (const { replaces } of indexes) for (const hash of replaces) this.replaced.add(`indexes/${hash}`);
    for (const { name, packs } of indexes)
      if (!this.replaced.has(name))
        for (const { id, length, entries } of packs) this.#addPack(id, length, entries);
    return this.#packs.size > known;
  }

  #openIndex(bytes: Buffer, name: string): ReturnType<typeof parseIndex> {
    check(sha256(bytes).toString('hex') === name, 'the name of an index');
    const owner = { masters: this.#masters, repositoryId: this.#repositoryId };
    return parseIndex(openObject(bytes, 'indexes', [types.index], owner).content);
  }

  /** Reads the tables of packs that no index names. Returns whether there are any. */
  #readTables(): boolean {
    let found = false;
    for (const name of this.#store.names('packs')) {
      const id = name.slice(-64);
      if (name !== packName(id) || this.#packs.has(id)) continue;
      const pack = orNull(() => this.#store.read(name));
      const entries = pack === null ? null : orNull(() => packTable(pack, this.#packKey(pack)));
      if (pack === null || entries === null) continue;
      this.#addPack(id, pack.length, entries);
      found = true;
    }
    return found;
  }

  #addPack(pack: string, length: number, entries: readonly Entry[]): void {
    if (this.#packs.has(pack)) return;
    this.#packs.add(pack);
    for (const entry of entries) {
      const places = this.#places.get(entry.id) ?? [];
      this.#places.set(entry.id, [...places, { pack, length, entry }]);
    }
  }

  #packKey(pack: Buffer): Buffer {
    return packKey(pack, this.#repositoryId, (generation) => this.#master(generation));
  }

  // Streams

  #stream({ root, sizeBytes, chunkSizeBytes }: Content): Buffer {
    const bytes = this.#chunk(root, 3, chunkSizeBytes);
    check(Number(bytes.readBigUInt64BE(0)) === sizeBytes, 'the length of a stream');
    check(bytes.readUInt32BE(8) === chunkSizeBytes, 'the chunk size of a stream');
    const chunks = Math.ceil(sizeBytes / chunkSizeBytes);
    const pages = pagesOf(sizeBytes, chunkSizeBytes);
    check(bytes.readUInt32BE(12) === pages && bytes.length === 16 + pages * 32, 'the pages of a stream');
    const content = Buffer.alloc(sizeBytes);
    for (let page = 0; page < pages; page++) {
      const pageId = bytes.toString('hex', 16 + page * 32, 48 + page * 32);
      if (pageId === zeroId) continue;
      const ids = this.#chunk(pageId, 2, chunkSizeBytes);
      check(ids.length === Math.min(1024, chunks - page * 1024) * 32, 'the length of a page');
      for (let index = 0; index < ids.length / 32; index++) {
        const id = ids.toString('hex', index * 32, index * 32 + 32);
        if (id === zeroId) continue;
        const offset = (page * 1024 + index) * chunkSizeBytes;
        const data = this.#chunk(id, 1, chunkSizeBytes);
        check(data.length === Math.min(chunkSizeBytes, sizeBytes - offset), 'the length of a chunk');
        data.copy(content, offset);
      }
    }
    return content;
  }

  /** A chunk, from any of its places: first those that indexes name. */
  #chunk(id: string, type: number, chunkSizeBytes: number): Buffer {
    const tried = new Set<Place>();
    let reason = 'it is in no pack';
    do {
      for (const place of this.#places.get(id) ?? []) {
        if (tried.has(place)) continue;
        tried.add(place);
        try {
          check(place.entry.type === type, 'the type of a chunk');
          check(place.entry.chunkSizeBytes === chunkSizeBytes, 'the chunk size of a chunk');
          const pack = this.#store.read(packName(place.pack));
          check(pack.length === place.length, 'the length of a pack');
          return this.#openChunk(pack, this.#packKey(pack), place.entry);
        } catch (error) {
          reason = String(error);
        }
      }
    } while (this.#readIndexes() || this.#readTables());
    throw new Error(`chunk ${id}: ${reason}`);
  }

  #openChunk(pack: Buffer, key: Buffer, entry: Entry): Buffer {
    const content = openBlob(pack, key, entry);
    const label = `chunk-id/${entry.type}/${entry.chunkSizeBytes}`;
    const idKey = derive(derive(this.#master(1), 'dedup'), label);
    check(hmac(idKey, content).toString('hex') === entry.id, 'the content of a chunk');
    return content;
  }
}

function configName(revision: number, copy: number): string {
  return `config/${numbered(revision)}${copy === 1 ? '' : `.${copy}`}`;
}

function packName(id: string): string {
  return `packs/${id.slice(0, 2)}/${id}`;
}
