import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fsyncDirectory, removeUnfinished } from '../../common/files.ts';
import { dataBytesOf, type VolumeSource } from '../../common/volumeSource.ts';
import { writeQcow2 } from '../directory/qcow2Writer.ts';
import { SourceFailure } from '../directory/sourceReader.ts';
import type { CopiedOut, CopyOutOptions } from '../storage.ts';
import { MeteredSource } from './meteredSource.ts';

const pieceBytes = 4 * 1024 * 1024;
const qcow2Magic = Buffer.from('QFI\u00fb', 'latin1');

/**
 * Writes a stream to a new file, which is on the disk then; what is zeros becomes holes. Removes its own unfinished
 * file.
 * @param sizeBytes of the artifact, as whoever watches the progress knows it
 * @throws the source's own error, the system's, or the reason of the signal
 */
export async function copyOut(
  stream: VolumeSource,
  sizeBytes: number,
  to: string,
  { as, signal, hold, onProgress }: CopyOutOptions,
): Promise<CopiedOut> {
  try {
    const dataBytes = await dataBytesOf(stream, signal);
    // Who watches must not take it for read before it is, nor wait for what is not read because it is zeros.
    const tell = (doneBytes: number): void =>
      onProgress?.(doneBytes >= dataBytes ? sizeBytes : Math.min(doneBytes, sizeBytes - 1));
    const counted = new MeteredSource(stream, { onProgress: tell, throttle: hold });
    if (dataBytes === 0) tell(0);
    const copied = (await isGuestView(stream, as, signal))
      ? await asQcow2(counted, to, signal)
      : await asFile(counted, to, signal);
    await fsyncDirectory(dirname(to));
    return copied;
  } catch (error) {
    await removeUnfinished(to);
    throw error instanceof SourceFailure ? error.cause : error;
  }
}

/**
 * What is to become a qcow2 image around it. An opaque volume is an encrypted qcow2 image already, or a LUKS container,
 * which in a directory stands in a qcow2 image, too.
 */
async function isGuestView(
  stream: VolumeSource,
  as: CopyOutOptions['as'],
  signal: AbortSignal | undefined,
): Promise<boolean> {
  if (as !== 'opaque volume') return as === 'volume';
  if (stream.virtualSizeBytes < qcow2Magic.length) return true;
  const magic = Buffer.alloc(qcow2Magic.length);
  await stream.readInto(magic, 0, signal);
  return !magic.equals(qcow2Magic);
}

async function asQcow2(
  stream: VolumeSource,
  to: string,
  signal: AbortSignal | undefined,
): Promise<CopiedOut> {
  const { sha256 } = await writeQcow2(stream, to, { signal });
  return { sha256, digest: 'chunks', written: 'not compared' };
}

async function asFile(stream: VolumeSource, to: string, signal: AbortSignal | undefined): Promise<CopiedOut> {
  const hash = createHash('sha256');
  const file = await open(to, 'wx', 0o600);
  try {
    await file.truncate(stream.virtualSizeBytes);
    const buffer = Buffer.alloc(pieceBytes);
    for (const { offsetBytes, lengthBytes, zero } of await stream.extents(signal)) {
      const end = offsetBytes + lengthBytes;
      for (let at = offsetBytes; at < end; at += pieceBytes) {
        signal?.throwIfAborted();
        const piece = buffer.subarray(0, Math.min(pieceBytes, end - at));
        if (zero) piece.fill(0);
        else {
          await stream.readInto(piece, at, signal);
          await writeAll(file, piece, at);
        }
        hash.update(piece);
      }
    }
    await file.datasync();
  } finally {
    await file.close();
  }
  return { sha256: hash.digest('hex'), digest: 'whole', written: 'not compared' };
}

async function writeAll(file: FileHandle, piece: Buffer, position: number): Promise<void> {
  let done = 0;
  while (done < piece.length)
    done += (await file.write(piece, done, piece.length - done, position + done)).bytesWritten;
}
