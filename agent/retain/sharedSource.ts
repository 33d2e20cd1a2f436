import type { Extent, VolumeSource } from '../../common/volumeSource.ts';

/** What is read at once, and kept for readers that come later. */
export const pieceBytes = 1024 * 1024;
const piecesMax = 20;
/** Readers ask for one stretch after the other, but not strictly: so far back one may still want something. */
const straggleBytes = 4 * pieceBytes;

/** Bytes of a volume from one position up to another one. */
export interface Stretch {
  readonly start: number;
  readonly end: number;
}

/** One reader's part of what it asks for: within a piece, or of what is in none. */
interface Part extends Stretch {
  readonly piece: Stretch | undefined;
}

/**
 * One volume for several readers that read from its beginning to its end, each in stretches of its own: what several of
 * them want is read once, in pieces. A reader that is ahead waits for the others when many pieces are kept for them;
 * the one that is last never waits. What is not in the pieces is read for whoever asks for it.
 */
export class SharedSource {
  readonly #source: VolumeSource;
  readonly #wanted: readonly Stretch[];
  readonly #signal: AbortSignal;
  readonly #readers = new Set<SharedReader>();
  /** By the position at which they start. */
  readonly #kept = new Map<number, { readonly piece: Stretch; readonly reading: Promise<Buffer> }>();
  #room = Promise.withResolvers<void>();

  /**
   * @param wanted what any of the readers will read, in order, joined
   * @param signal ends the reads for all; that of one reader ends only its waiting
   */
  constructor(source: VolumeSource, wanted: readonly Stretch[], signal: AbortSignal) {
    this.#source = source;
    this.#wanted = wanted;
    this.#signal = signal;
  }

  get source(): VolumeSource {
    return this.#source;
  }

  /** A reader; all are taken before the first one reads, and each is left when it is done, whatever came of it. */
  join(): SharedReader {
    const reader = new SharedReader(this);
    this.#readers.add(reader);
    return reader;
  }

  leave(reader: SharedReader): void {
    this.#readers.delete(reader);
    this.#dropPassed();
    this.#makeRoom();
  }

  async readInto(reader: SharedReader, target: Buffer, offsetBytes: number): Promise<void> {
    if (offsetBytes > reader.position) {
      reader.position = offsetBytes;
      this.#dropPassed();
      // Who was last may not be it any more.
      this.#makeRoom();
    }
    const parts = [...this.#partsOf(offsetBytes, offsetBytes + target.length)];
    await Promise.all(
      parts.map((part) =>
        this.#readPart(reader, part, target.subarray(part.start - offsetBytes, part.end - offsetBytes)),
      ),
    );
  }

  async #readPart(reader: SharedReader, { start, piece }: Part, target: Buffer): Promise<void> {
    const alone = (): Promise<void> => this.#source.readInto(target, start, this.#signal);
    if (piece === undefined) return alone();
    for (;;) {
      const kept = this.#kept.get(piece.start);
      if (kept !== undefined) {
        const from = start - piece.start;
        (await kept.reading).copy(target, 0, from, from + target.length);
        return;
      }
      if (!this.#isAwaited(piece, reader)) return alone();
      if (this.#kept.size < piecesMax || this.#isLast(reader)) this.#keep(piece);
      else await this.#room.promise;
    }
  }

  #keep(piece: Stretch): void {
    const reading = this.#ask(piece);
    // Who takes it hears of a failure.
    reading.catch(() => undefined);
    this.#kept.set(piece.start, { piece, reading });
  }

  async #ask({ start, end }: Stretch): Promise<Buffer> {
    const buffer = Buffer.allocUnsafe(end - start);
    await this.#source.readInto(buffer, start, this.#signal);
    return buffer;
  }

  /** Whether another reader may still want it. */
  #isAwaited({ end }: Stretch, except?: SharedReader): boolean {
    for (const reader of this.#readers)
      if (reader !== except && reader.position < end + straggleBytes) return true;
    return false;
  }

  #isLast(reader: SharedReader): boolean {
    for (const { position } of this.#readers) if (position < reader.position) return false;
    return true;
  }

  #dropPassed(): void {
    for (const [start, { piece }] of this.#kept) if (!this.#isAwaited(piece)) this.#kept.delete(start);
  }

  #makeRoom(): void {
    this.#room.resolve();
    this.#room = Promise.withResolvers<void>();
  }

  *#partsOf(start: number, end: number): Generator<Part> {
    let place = this.#firstEndingAfter(start);
    for (let at = start; at < end; ) {
      const wanted = this.#wanted[place];
      if (wanted === undefined || wanted.start >= end) {
        yield { start: at, end, piece: undefined };
        return;
      }
      if (at < wanted.start) {
        yield { start: at, end: wanted.start, piece: undefined };
        at = wanted.start;
      }
      const pieceStart = Math.floor(at / pieceBytes) * pieceBytes;
      const piece = {
        start: Math.max(wanted.start, pieceStart),
        end: Math.min(wanted.end, pieceStart + pieceBytes),
      };
      yield { start: at, end: Math.min(piece.end, end), piece };
      at = piece.end;
      if (at === wanted.end) place += 1;
    }
  }

  #firstEndingAfter(position: number): number {
    let low = 0;
    let high = this.#wanted.length;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#wanted[middle]?.end ?? 0) <= position) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The volume as one of its readers sees it. */
export class SharedReader implements VolumeSource, Disposable {
  readonly #shared: SharedSource;
  /** Where its newest request begins. */
  position = -1;

  constructor(shared: SharedSource) {
    this.#shared = shared;
  }

  get virtualSizeBytes(): number {
    return this.#shared.source.virtualSizeBytes;
  }

  extents(signal?: AbortSignal): Promise<readonly Extent[]> {
    return this.#shared.source.extents(signal);
  }

  async readInto(target: Buffer, offsetBytes: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    await this.#shared.readInto(this, target, offsetBytes);
  }

  [Symbol.dispose](): void {
    this.#shared.leave(this);
  }
}

/**
 * What has to be read of a volume for extents that are not zeros, when it is read in whole multiples of `unitBytes`.
 * In order, joined.
 */
export function stretchesOf(
  extents: readonly Extent[],
  unitBytes: number,
  virtualSizeBytes: number,
): readonly Stretch[] {
  const rounded = extents
    .filter(({ zero, lengthBytes }) => !zero && lengthBytes > 0)
    .map(({ offsetBytes, lengthBytes }) => ({
      start: Math.floor(offsetBytes / unitBytes) * unitBytes,
      end: Math.min(Math.ceil((offsetBytes + lengthBytes) / unitBytes) * unitBytes, virtualSizeBytes),
    }));
  return joined(rounded);
}

/** What is in any of these, in order; what touches is one. */
export function joined(stretches: readonly Stretch[]): readonly Stretch[] {
  const result: Stretch[] = [];
  for (const stretch of stretches.toSorted((one, other) => one.start - other.start)) {
    const last = result.at(-1);
    if (last === undefined || stretch.start > last.end) result.push(stretch);
    else result[result.length - 1] = { start: last.start, end: Math.max(last.end, stretch.end) };
  }
  return result;
}
