/** Readers that one connection can have side by side: a guest copies one file while it reads another. */
const readersMax = 4;
/** How far requests that are under way together may overtake each other. */
const reachBlocks = 8;
/** After so many blocks in a row somebody is taken for a sequential reader. */
const provenBlocks = 2;

interface Reader {
  /** The farthest block that was read. */
  last: number;
  /** The next one that is no hole. */
  next: number;
  /** How far it has come. */
  runBlocks: number;
}

/** Finds out whether a connection reads one block after the other, by what it reads. */
export class Sequence {
  readonly #aheadBlocksMax: number;
  readonly #nextDataBlock: (block: number) => number;
  /** The one that was not heard of the longest comes first. */
  readonly #readers: Reader[] = [];

  /** @param nextDataBlock the first block from one on that somebody who leaves out holes would read */
  constructor(aheadBlocksMax: number, nextDataBlock: (block: number) => number) {
    this.#aheadBlocksMax = aheadBlocksMax;
    this.#nextDataBlock = nextDataBlock;
  }

  /** Takes note of a read; returns how many blocks behind it are worth reading ahead, 0 for most reads. */
  note(first: number, last: number): number {
    const index = this.#readers.findIndex((known) => isNext(known, first, last));
    const reader = this.#readers[index];
    if (reader === undefined) {
      if (this.#readers.length >= readersMax) this.#readers.shift();
      this.#readers.push({ last, next: this.#nextDataBlock(last + 1), runBlocks: 0 });
      return 0;
    }
    if (last <= reader.last) return 0;
    this.#readers.splice(index, 1);
    this.#readers.push(reader);
    reader.runBlocks += Math.min(last - reader.last, last - first + 1);
    reader.last = last;
    reader.next = this.#nextDataBlock(last + 1);
    return reader.runBlocks < provenBlocks ? 0 : Math.min(reader.runBlocks, this.#aheadBlocksMax);
  }
}

function isNext({ last: known, next }: Reader, first: number, last: number): boolean {
  return first === next || (first <= known + reachBlocks && last >= known - reachBlocks);
}
