import type { GetObjectCommandOutput } from '@aws-sdk/client-s3';
import type { ByteRange } from './backend.ts';
import { UnusableAnswer } from './s3Failure.ts';

/** What is asked for. */
export interface WantedBytes extends ByteRange {
  /** The object must have its end within that. */
  readonly isWhole: boolean;
}

/**
 * The content of an answer, as long as was asked for: the server's word counts for nothing beyond that. Throws
 * UnusableAnswer for one that is longer or shorter than it says, or another piece than the one that was asked for.
 */
export async function readBody(answer: GetObjectCommandOutput, wanted: WantedBytes): Promise<Buffer> {
  const { Body: body } = answer;
  if (body === undefined || !(Symbol.asyncIterator in body))
    throw new UnusableAnswer('an answer without content');
  const iterable: AsyncIterable<Uint8Array> = body;
  let content: Buffer | null = null;
  let filledBytes = 0;
  // Leaving the loop, also by an error, ends the connection.
  for await (const piece of iterable) {
    content ??= Buffer.allocUnsafe(announcedBytes(answer, wanted));
    if (filledBytes + piece.length > content.length) throw new UnusableAnswer('more bytes than it announced');
    content.set(piece, filledBytes);
    filledBytes += piece.length;
  }
  content ??= Buffer.alloc(announcedBytes(answer, wanted));
  if (filledBytes !== content.length) throw new UnusableAnswer(`${filledBytes} bytes of ${content.length}`);
  return content;
}

/** How long the content must be by the headers, if they fit together and to the question. */
function announcedBytes(answer: GetObjectCommandOutput, wanted: WantedBytes): number {
  const { ContentLength: lengthBytes, ContentRange: place } = answer;
  if (lengthBytes === undefined) throw new UnusableAnswer('an answer without its length');
  if (lengthBytes > wanted.lengthBytes)
    throw new UnusableAnswer(`${lengthBytes} bytes where ${wanted.lengthBytes} may be`);
  if (place === undefined) {
    // The whole object is an answer if it is what there is of the range.
    if (wanted.offsetBytes > 0) throw new UnusableAnswer('the whole object instead of a part');
    return lengthBytes;
  }
  const { offsetBytes, endBytes, totalBytes } = parseContentRange(place);
  if (wanted.isWhole && totalBytes > wanted.lengthBytes)
    throw new UnusableAnswer(`${totalBytes} bytes where ${wanted.lengthBytes} may be`);
  const wantedEnd = Math.min(wanted.offsetBytes + wanted.lengthBytes, totalBytes);
  const fits = offsetBytes === wanted.offsetBytes && endBytes === wantedEnd;
  if (!fits || endBytes - offsetBytes !== lengthBytes)
    throw new UnusableAnswer(`another part (${place}, ${lengthBytes} bytes) than the one that was asked for`);
  return lengthBytes;
}

/** `bytes 0-99/1234` (RFC 9110, 14.4); its last byte is within, our end is behind it. */
export function parseContentRange(text: string): {
  readonly offsetBytes: number;
  readonly endBytes: number;
  readonly totalBytes: number;
} {
  const match = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(text);
  if (match === null) throw new UnusableAnswer('a part without its place');
  const [offsetBytes = 0, last = 0, totalBytes = 0] = match.slice(1).map(Number);
  return { offsetBytes, endBytes: last + 1, totalBytes };
}
