import { type CallOptions, listAll } from '../backends/backend.ts';
import { type BackupContent, type ContentReference, contentsOf } from './backupManifest.ts';
import { readAttempt } from './backups.ts';
import { zeroId } from './chunkId.ts';
import { ChunkIndex } from './chunkIndex.ts';
import { ChunkReader } from './chunkReader.ts';
import type { ChunkPlace } from './chunkTable.ts';
import { quarantinedPacks } from './condemned.ts';
import { RepositoryError } from './errors.ts';
import { attemptOf, packIdOf, prefixes } from './names.ts';
import type { RepositoryContext } from './objects.ts';
import { PlaceSet } from './placeSet.ts';
import { StreamReader } from './streamReader.ts';
import { tagBytes } from './seal.ts';

/** How much of a pack is needed. */
export interface PackUse {
  /** Of its blobs. */
  readonly totalBytes: number;
  readonly liveBytes: number;
}

/**
 * Which place of which chunk is needed. For each chunk that an existing backup refers to one place is chosen, its
 * home; everything else in the store is not needed. Homes are, as far as that is possible, in packs that are neither
 * condemned nor in quarantine.
 */
export class LiveChunks {
  readonly index: ChunkIndex;
  /** Packs that are there: id (hex) to length in bytes. */
  readonly present: ReadonlyMap<string, number>;
  readonly quarantined: ReadonlySet<string>;
  readonly #reader: ChunkReader;
  readonly #storage: string;
  readonly #condemned: ReadonlySet<string>;
  readonly #homes: PlaceSet;

  private constructor(
    context: RepositoryContext,
    index: ChunkIndex,
    packs: {
      readonly present: ReadonlyMap<string, number>;
      readonly condemned: ReadonlySet<string>;
      readonly quarantined: ReadonlySet<string>;
    },
  ) {
    this.index = index;
    this.present = packs.present;
    this.quarantined = packs.quarantined;
    this.#condemned = packs.condemned;
    this.#reader = new ChunkReader(context, index);
    this.#storage = context.storage;
    this.#homes = new PlaceSet(index.chunkCount);
  }

  /**
   * Reads every backup that exists. Rejects when anything at all cannot be listed or read, or is not there
   * (invariant 6): STORAGE_…, REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW, CHUNK_MISSING.
   *
   * @param options.condemned ids (hex) of packs in which a home is looked for last
   */
  static async survey(
    context: RepositoryContext,
    options: CallOptions & { readonly condemned: ReadonlySet<string> },
  ): Promise<LiveChunks> {
    // Manifests first: all that they refer to was there before them, and so is in the listings that follow.
    const contents = await neededContents(context, options);
    const index = await ChunkIndex.load(context, options);
    const present = await presentPacks(context, options);
    await index.readUnknownPacks(options);
    const quarantined = await quarantinedPacks(context, options);
    const live = new LiveChunks(context, index, { present, quarantined, condemned: options.condemned });
    for (const { name, content } of contents) await live.#follow(content, name, options);
    return live;
  }

  isHome(place: ChunkPlace): boolean {
    return this.#homes.has(place);
  }

  /** Of every pack that is there, and whose table is known, by its id (hex). */
  uses(): ReadonlyMap<string, PackUse> {
    const uses = this.index.packs.map(() => ({ totalBytes: 0, liveBytes: 0 }));
    for (const place of this.index.places()) {
      const use = uses[place.pack];
      if (use === undefined) continue;
      const bytes = place.entry.storedBytes + tagBytes;
      use.totalBytes += bytes;
      if (this.isHome(place)) use.liveBytes += bytes;
    }
    const named = uses.map((use, pack): [string, PackUse] => [this.#hex(pack), use]);
    return new Map(named.filter(([id]) => this.present.has(id)));
  }

  /** Pages that were seen are not read again: backups share nearly all of theirs. */
  async #follow(content: ContentReference, what: string, options: CallOptions): Promise<void> {
    if (!this.#need(Buffer.from(content.root, 'hex'), what)) return;
    const stream = await StreamReader.open(this.#reader, content, options);
    for (const [page, pageId] of stream.root.pageIds.entries()) {
      if (pageId.equals(zeroId) || !this.#need(pageId, what)) continue;
      for (const id of await stream.pageIds(page, options.signal))
        if (!id.equals(zeroId)) this.#need(id, what);
    }
  }

  /** Notes that a chunk is needed. Returns whether that is new. */
  #need(id: Buffer, what: string): boolean {
    let home: ChunkPlace | null = null;
    let best = Number.POSITIVE_INFINITY;
    for (const place of this.index.find(id)) {
      const rank = this.#rank(place.pack);
      if (rank >= best) continue;
      home = place;
      best = rank;
    }
    if (home === null)
      throw new RepositoryError(
        'CHUNK_MISSING',
        `${what} needs chunk ${id.toString('hex')}: it is in no pack that is as an index says`,
        {
          hint: `nothing is deleted while a backup is damaged: stillpoint storage check ${this.#storage} --data --repair says what can be cured`,
        },
      );
    return this.#homes.add(home);
  }

  /** The less the better; infinite for a pack that is not there as the index says. */
  #rank(pack: number): number {
    const id = this.#hex(pack);
    if (this.present.get(id) !== this.index.pack(pack).sizeBytes) return Number.POSITIVE_INFINITY;
    return (this.quarantined.has(id) ? 2 : 0) + (this.#condemned.has(id) ? 1 : 0);
  }

  #hex(pack: number): string {
    return this.index.pack(pack).id.toString('hex');
  }
}

/** Packs that are there: id (hex) to length in bytes. */
export async function presentPacks(
  context: RepositoryContext,
  options: CallOptions,
): Promise<ReadonlyMap<string, number>> {
  const present = new Map<string, number>();
  for (const { name, sizeBytes } of await listAll(context.backend, prefixes.packs, options)) {
    const id = packIdOf(name);
    if (id !== null) present.set(id.toString('hex'), sizeBytes);
  }
  return present;
}

/** The streams of every backup that exists; one that cannot be read may refer to anything, and rejects. */
async function neededContents(
  context: RepositoryContext,
  options: CallOptions,
): Promise<readonly BackupContent[]> {
  const contents: BackupContent[] = [];
  for (const { name } of await listAll(context.backend, prefixes.manifests, options)) {
    const attempt = attemptOf(name, prefixes.manifests);
    const manifest = attempt === null ? null : await readAttempt(context, attempt, options);
    if (manifest === null || manifest === 'fenced') continue;
    for (const stream of contentsOf(manifest))
      contents.push({ ...stream, name: `${stream.name} of backup ${manifest.id}` });
  }
  return contents;
}
