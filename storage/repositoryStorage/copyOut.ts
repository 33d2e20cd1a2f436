import { createHash } from 'node:crypto';
import { type FileHandle, open, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fsyncDirectory } from '../../common/files.ts';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { writeQcow2 } from '../directory/qcow2Writer.ts';
import { SourceFailure } from '../directory/sourceReader.ts';
import type { CopiedOut, CopyOutOptions } from '../storage.ts';

const pieceBytes = 4 * 1024 * 1024;
const qcow2Magic = Buffer.from('QFI\u00fb', 'latin1');

/**
 * Writes a stream to a new file, which is on the disk then; what is zeros becomes holes. Removes its own unfinished
 * file.
 * @throws the source's own error, the system's, or the reason of the signal
 */
export async function copyOut(stream: VolumeSource, to: string, options: CopyOutOptions): Promise<CopiedOut> {
  try {
    const copied = (await isGuestView(stream, options))
      ? await asQcow2(stream, to, options)
      : await asFile(stream, to, options);
    await fsyncDirectory(dirname(to));
    return copied;
  } catch (error) {
    await rm(to, { force: true });
    throw error instanceof SourceFailure ? error.cause : error;
  }
}

/**
 * What is to become a qcow2 image around it. An opaque volume is an encrypted qcow2 image already, or a LUKS container,
 * which in a directory stands in a qcow2 image, too.
 */
async function isGuestView(stream: VolumeSource, { as, signal }: CopyOutOptions): Promise<boolean> {
  if (as !== 'opaque volume') return as === 'volume';
  if (stream.virtualSizeBytes < qcow2Magic.length) return true;
  const magic = Buffer.alloc(qcow2Magic.length);
  await stream.readInto(magic, 0, signal);
  return !magic.equals(qcow2Magic);
}

async function asQcow2(
  stream: VolumeSource,
  to: string,
  { signal, onProgress }: CopyOutOptions,
): Promise<CopiedOut> {
  const { sha256 } = await writeQcow2(stream, to, { signal, onProgress });
  return { sha256, digest: 'chunks', isShared: false };
}

async function asFile(
  stream: VolumeSource,
  to: string,
  { signal, onProgress }: CopyOutOptions,
): Promise<CopiedOut> {
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
        onProgress?.(at + piece.length);
      }
    }
    await file.datasync();
  } finally {
    await file.close();
  }
  return { sha256: hash.digest('hex'), digest: 'whole', isShared: false };
}

async function writeAll(file: FileHandle, piece: Buffer, position: number): Promise<void> {
  let done = 0;
  while (done < piece.length)
    done += (await file.write(piece, done, piece.length - done, position + done)).bytesWritten;
}
