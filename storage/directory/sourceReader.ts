import type { VolumeSource } from '../../common/volumeSource.ts';
import type { Run } from '../run.ts';

/** Bytes read at once. */
export const blockBytes = 1024 * 1024;
const readsInFlight = 6;

/** Wraps an error of the source, so that a system error in it is not taken for one of the storage. */
export class SourceFailure extends Error {
  constructor(cause: unknown) {
    super('the source of a volume failed', { cause });
  }
}

export async function askSource<T>(question: () => Promise<T>): Promise<T> {
  try {
    return await question();
  } catch (error) {
    throw new SourceFailure(error);
  }
}

/** A stretch of a volume that is to be read, at most `blockBytes` long. */
export interface Piece {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/**
 * Reads pieces of a volume, several of them ahead, and gives them in their order. A block is used again when the next
 * one is asked for: what is left to the garbage collector would stay for long.
 */
export async function* readInOrder(
  source: VolumeSource,
  pieces: Iterator<Piece>,
  run: Run,
): AsyncGenerator<{ readonly piece: Piece; readonly block: Buffer }> {
  const underWay: { readonly piece: Piece; readonly reading: Promise<Buffer> }[] = [];
  const spare: Buffer[] = [];
  const readAhead = (): void => {
    while (underWay.length < readsInFlight) {
      const next = pieces.next();
      if (next.done === true) return;
      const reading = readPiece(
        source,
        next.value,
        spare.pop() ?? Buffer.allocUnsafe(blockBytes),
        run.signal,
      );
      reading.catch((error: unknown) => run.fail(error));
      underWay.push({ piece: next.value, reading });
    }
  };
  readAhead();
  for (let next = underWay.shift(); next !== undefined; next = underWay.shift()) {
    const block = await run.unlessStopped(next.reading);
    readAhead();
    yield { piece: next.piece, block: block.subarray(0, next.piece.lengthBytes) };
    spare.push(block);
  }
}

async function readPiece(
  source: VolumeSource,
  { offsetBytes, lengthBytes }: Piece,
  block: Buffer,
  signal: AbortSignal,
): Promise<Buffer> {
  await askSource(() => source.readInto(block.subarray(0, lengthBytes), offsetBytes, signal));
  return block;
}
