import { setTimeout as sleep } from 'node:timers/promises';
import type { VolumeSource } from '../../common/volumeSource.ts';
import type { AddOptions } from '../storage.ts';
import type { Run } from './run.ts';

/** Bytes read at once. */
export const blockBytes = 1024 * 1024;
const readsInFlight = 8;

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

/** Reads pieces of a volume, several of them ahead, and gives them in their order. */
export async function* readInOrder(
  source: VolumeSource,
  pieces: Iterator<Piece>,
  run: Run,
): AsyncGenerator<{ readonly piece: Piece; readonly block: Buffer }> {
  const underWay: { readonly piece: Piece; readonly reading: Promise<Buffer> }[] = [];
  const readAhead = (): void => {
    while (underWay.length < readsInFlight) {
      const next = pieces.next();
      if (next.done === true) return;
      const reading = readPiece(source, next.value, run.signal);
      reading.catch((error: unknown) => run.fail(error));
      underWay.push({ piece: next.value, reading });
    }
  };
  readAhead();
  for (let next = underWay.shift(); next !== undefined; next = underWay.shift()) {
    const block = await run.unlessStopped(next.reading);
    readAhead();
    yield { piece: next.piece, block };
  }
}

async function readPiece(source: VolumeSource, piece: Piece, signal: AbortSignal): Promise<Buffer> {
  const block = Buffer.allocUnsafe(piece.lengthBytes);
  await askSource(() => source.readInto(block, piece.offsetBytes, signal));
  return block;
}

/** Waits until so many bytes are due at the bandwidth that is allowed. */
export async function holdBack(
  bytesDone: number,
  startedAt: number,
  run: Run,
  options: AddOptions,
): Promise<void> {
  const limit = options.bandwidthBytesPerSecond ?? 0;
  if (limit <= 0) return;
  const waitMs = startedAt + (bytesDone / limit) * 1000 - performance.now();
  if (waitMs >= 1) await sleep(waitMs, undefined, { signal: run.signal });
}
