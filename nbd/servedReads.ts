import type { ByteWindow } from './byteWindow.ts';
import type { CachedVolume } from './cachedVolume.ts';
import * as protocol from './protocol.ts';
import type { Replies, Sent } from './replies.ts';
import type { Sequence } from './sequence.ts';
import type { ClientRequest } from './serverProtocol.ts';

/** What the reads of one connection share. */
export interface ReadContext {
  readonly volume: CachedVolume;
  readonly replies: Replies;
  readonly window: ByteWindow;
  readonly sequence: Sequence;
  /** What one connection may make the server hold. */
  readonly heldBytesMax: number;
  /** Takes the error of a source; called by everybody who waited for it. */
  readonly report: (error: unknown) => void;
}

interface Range {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** A large read is answered in chunks that need about this much room each. */
const pieceBytesMax = 1024 * 1024;
/** Smaller holes within a read go as data: a chunk costs more than they do. */
const holeBytesMin = 64 * 1024;
/** The specification lets nobody refuse to send so much in one chunk. */
const unfragmentedBytesMin = 64 * 1024;

const sourceFailed = 'the volume cannot be read there';

/** The reads of one connection, answered from the cache at once where that is possible. */
export class ServedReads {
  readonly #context: ReadContext;

  constructor(context: ReadContext) {
    this.#context = context;
  }

  /** Answers a read of a range within the volume. `sent` is called once, in any case. */
  serve(request: ClientRequest, sent: Sent): void {
    const { volume, replies } = this.#context;
    const { offsetBytes, lengthBytes } = request;
    if (lengthBytes === 0) return replies.finish(request, sent);
    if (replies.structured && volume.map?.isZeroRange(offsetBytes, lengthBytes) === true)
      return replies.hole(request, { offsetBytes, lengthBytes, done: true }, sent);
    if (this.#mustBeWhole(request)) return this.#serveWhole(request, sent);
    const spanBytes = this.#spanOf(request);
    const isOne = spanBytes <= Math.max(pieceBytesMax, volume.blockBytes) && !this.#hasHole(request);
    if (isOne) this.#serveOne(request, spanBytes, sent);
    else void this.#serveInPieces(request, sent);
    this.#readAhead(request);
  }

  #mustBeWhole({ flags }: ClientRequest): boolean {
    return !this.#context.replies.structured || (flags & protocol.commandFlags.dontFragment) !== 0;
  }

  #serveWhole(request: ClientRequest, sent: Sent): void {
    const { replies, heldBytesMax } = this.#context;
    const spanBytes = this.#spanOf(request);
    const isTooMuch = spanBytes > heldBytesMax && request.lengthBytes > unfragmentedBytesMin;
    if (replies.structured && isTooMuch)
      return replies.refuse(request, protocol.errnos.EOVERFLOW, 'too long for one chunk', sent);
    this.#serveOne(request, spanBytes, sent);
    this.#readAhead(request);
  }

  /** All in one chunk, or in a simple reply. */
  #serveOne(request: ClientRequest, spanBytes: number, sent: Sent): void {
    const { replies, window } = this.#context;
    if (!window.tryTake(spanBytes)) return void this.#waitForOne(request, spanBytes, sent);
    const pieces = this.#present(request);
    if (pieces === undefined) return void this.#readOne(request, spanBytes, sent);
    replies.data(request, { ...rangeOf(request), done: true }, pieces, () => {
      window.give(spanBytes);
      sent();
    });
  }

  async #waitForOne(request: ClientRequest, spanBytes: number, sent: Sent): Promise<void> {
    if (await this.#context.window.take(spanBytes)) await this.#readOne(request, spanBytes, sent);
    else sent();
  }

  async #readOne(request: ClientRequest, spanBytes: number, sent: Sent): Promise<void> {
    const { replies, window } = this.#context;
    const leave = (): void => {
      window.give(spanBytes);
      sent();
    };
    try {
      const pieces = await this.#read(request);
      replies.data(request, { ...rangeOf(request), done: true }, pieces, leave);
    } catch (error) {
      this.#context.report(error);
      replies.refuse(request, protocol.errnos.EIO, sourceFailed, leave);
    }
  }

  /** In several chunks, as many at a time as the window has room for; an error comes behind all of them. */
  async #serveInPieces(request: ClientRequest, sent: Sent): Promise<void> {
    const { replies, window } = this.#context;
    const failures: unknown[] = [];
    const underWay: Promise<void>[] = [];
    for (const piece of this.#piecesOf(request)) {
      if (piece.zero) {
        replies.hole(request, { ...rangeOf(piece), done: false });
        continue;
      }
      const spanBytes = this.#spanOf(piece);
      if (!(await window.take(spanBytes))) break;
      if (failures.length > 0) {
        window.give(spanBytes);
        break;
      }
      underWay.push(
        this.#sendPiece(request, piece, spanBytes).catch((error: unknown) => void failures.push(error)),
      );
    }
    await Promise.all(underWay);
    for (const failure of failures) this.#context.report(failure);
    if (failures.length === 0) replies.finish(request, sent);
    else replies.refuse(request, protocol.errnos.EIO, sourceFailed, sent);
  }

  async #sendPiece(request: ClientRequest, piece: Range, spanBytes: number): Promise<void> {
    const { replies, window } = this.#context;
    const give = (): void => window.give(spanBytes);
    let pieces: readonly Buffer[];
    try {
      pieces = await this.#read(piece);
    } catch (error) {
      give();
      throw error;
    }
    replies.data(request, { ...rangeOf(piece), done: false }, pieces, give);
  }

  /** What a chunk each can carry: holes that are worth it, and data to the end of a block. */
  *#piecesOf(request: Range): Generator<Range & { readonly zero: boolean }> {
    const { map, blockBytes } = this.#context.volume;
    const end = endOf(request);
    const stepBytes = Math.max(pieceBytesMax, blockBytes);
    let start = request.offsetBytes;
    while (start < end) {
      const hole = map === undefined ? undefined : nextHole(map, start, end);
      const dataEnd = hole?.offsetBytes ?? end;
      while (start < dataEnd) {
        const stop = Math.min(dataEnd, (Math.floor(start / stepBytes) + 1) * stepBytes);
        yield { offsetBytes: start, lengthBytes: stop - start, zero: false };
        start = stop;
      }
      if (hole === undefined) return;
      yield { ...hole, zero: true };
      start = endOf(hole);
    }
  }

  #hasHole(request: Range): boolean {
    const { map } = this.#context.volume;
    if (map === undefined || request.lengthBytes < holeBytesMin) return false;
    return nextHole(map, request.offsetBytes, endOf(request)) !== undefined;
  }

  /** The range out of blocks that are there; `undefined` if one is missing. */
  #present(range: Range): readonly Buffer[] | undefined {
    const { volume } = this.#context;
    const pieces: Buffer[] = [];
    for (let { first, last } = this.#blocksOf(range); first <= last; first += 1) {
      const block = volume.peek(first);
      if (block === undefined) return undefined;
      pieces.push(this.#cut(block, first, range));
    }
    return pieces;
  }

  /** @throws NBD_SOURCE_FAILED */
  async #read(range: Range): Promise<readonly Buffer[]> {
    const { first, last } = this.#blocksOf(range);
    const { volume } = this.#context;
    const blocks = await Promise.all(
      Array.from({ length: last - first + 1 }, (_, index) => volume.read(first + index)),
    );
    return blocks.map((block, index) => this.#cut(block, first + index, range));
  }

  #cut(block: Buffer, number: number, range: Range): Buffer {
    const blockStart = number * this.#context.volume.blockBytes;
    const start = Math.max(0, range.offsetBytes - blockStart);
    return block.subarray(start, Math.min(block.length, endOf(range) - blockStart));
  }

  #blocksOf(range: Range): { readonly first: number; readonly last: number } {
    const { blockBytes } = this.#context.volume;
    return {
      first: Math.floor(range.offsetBytes / blockBytes),
      last: Math.floor((endOf(range) - 1) / blockBytes),
    };
  }

  /** What a range makes the server hold: a slice keeps its whole block from going. */
  #spanOf(range: Range): number {
    const { first, last } = this.#blocksOf(range);
    return (last - first + 1) * this.#context.volume.blockBytes;
  }

  #readAhead(request: Range): void {
    const { volume, sequence } = this.#context;
    const { first, last } = this.#blocksOf(request);
    const count = sequence.note(first, last);
    if (count > 0) volume.readAhead(last, count);
  }
}

/** The first hole of a range that is worth a chunk of its own, cut to the range. */
function nextHole(map: NonNullable<CachedVolume['map']>, start: number, end: number): Range | undefined {
  let position = start;
  for (let stretch = map.stretchAt(start); position < end; stretch += 1) {
    const stop = Math.min(end, map.endOf(stretch));
    if (map.isZero(stretch) && stop - position >= holeBytesMin)
      return { offsetBytes: position, lengthBytes: stop - position };
    position = stop;
  }
  return undefined;
}

function rangeOf({ offsetBytes, lengthBytes }: Range): Range {
  return { offsetBytes, lengthBytes };
}

function endOf({ offsetBytes, lengthBytes }: Range): number {
  return offsetBytes + lengthBytes;
}
