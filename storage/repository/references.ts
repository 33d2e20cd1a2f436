import type { CallOptions } from '../backends/backend.ts';
import type { ContentReference } from './backupManifest.ts';
import { type ChunkDomain, zeroId } from './chunkId.ts';
import type { ChunkIndex } from './chunkIndex.ts';
import type { ChunkReader } from './chunkReader.ts';
import type { ChunkPlace } from './chunkTable.ts';
import { packName } from './names.ts';
import type { RepositoryContext } from './objects.ts';
import { PlaceSet } from './placeSet.ts';
import { StreamReader } from './streamReader.ts';

export interface ReferencedChunk {
  readonly id: Buffer;
  readonly domain: ChunkDomain;
}

/** Every chunk of a stream, pages and root included, that is not zeros. Pages are read, and so are checked. */
export async function* referencedChunks(
  reader: ChunkReader,
  content: ContentReference,
  options: CallOptions = {},
): AsyncGenerator<ReferencedChunk> {
  const { chunkSizeBytes } = content;
  yield { id: Buffer.from(content.root, 'hex'), domain: { type: 'root', chunkSizeBytes } };
  const stream = await StreamReader.open(reader, content, options);
  const { pageIds } = stream.root;
  const pages = [...pageIds.keys()].filter((page) => pageIds[page]?.equals(zeroId) === false);
  for (const page of pages) {
    const id = pageIds[page];
    if (id !== undefined) yield { id, domain: { type: 'page', chunkSizeBytes } };
  }
  for await (const { ids } of stream.walkPages(pages, options.signal))
    for (const id of ids) if (!id.equals(zeroId)) yield { id, domain: { type: 'data', chunkSizeBytes } };
}

export interface ReferenceCheck {
  /** Packs, by their numbers in the index, that the streams are read from. */
  readonly packs: ReadonlySet<number>;
  /** Packs that should be there and are not, or have another length. */
  readonly gonePacks: readonly Buffer[];
  /** Chunks that are in no pack that may be used and is there. */
  readonly lostChunks: readonly ReferencedChunk[];
}

/**
 * Whether everything that some streams refer to stands in packs that are there and may be used. Asks the store for
 * each of these packs by its name: an index or a listing may be old. Takes a bit of memory for each chunk of the index.
 */
export async function checkReferences(
  context: RepositoryContext,
  index: ChunkIndex,
  reader: ChunkReader,
  contents: readonly ContentReference[],
  options: CallOptions & { isUsable(pack: number): boolean; readonly onLook?: (() => void) | undefined },
): Promise<ReferenceCheck> {
  const present = new Map<number, boolean>();
  /** The first places of chunks that were looked at. */
  const seen = new PlaceSet(index.chunkCount);
  const lost = new Map<string, ReferencedChunk>();
  const packs = new Set<number>();
  for (const content of contents) {
    for await (const chunk of referencedChunks(reader, content, options)) {
      options.onLook?.();
      const places = [...index.find(chunk.id)];
      const [first] = places;
      if (first !== undefined && !seen.add(first)) continue;
      if (!(await isThere(places))) lost.set(chunk.id.toString('latin1'), chunk);
    }
  }
  const gonePacks = [...present].filter(([, there]) => !there).map(([pack]) => index.pack(pack).id);
  return { packs, gonePacks, lostChunks: [...lost.values()] };

  async function isThere(places: readonly ChunkPlace[]): Promise<boolean> {
    for (const { pack } of places) {
      if (!options.isUsable(pack)) continue;
      let there = present.get(pack);
      if (there === undefined) {
        const known = index.pack(pack);
        there = (await context.backend.size(packName(known.id), options)) === known.sizeBytes;
        present.set(pack, there);
      }
      if (!there) continue;
      packs.add(pack);
      return true;
    }
    return false;
  }
}
