import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { directBuffers } from '../../common/directBuffers.ts';
import { isErrno, messageOf } from '../../common/errors.ts';
import { openDirect } from '../../common/pieces.ts';
import { restoreMark } from '../../common/restoreMark.ts';
import type { VolumeSource } from '../../common/volumeSource.ts';
import { RestoreError } from './errors.ts';

const pieceBytes = 4 * 1024 * 1024;
const zeros = Buffer.alloc(pieceBytes);
/** The mark takes a whole block, as devices are written in these. */
const markBytes = 4096;

export interface WriteOptions {
  readonly signal: AbortSignal;
  readonly onProgress: (what: 'writing' | 'comparing', doneBytes: number) => void;
}

/**
 * Overwrites the beginning of a block device with a volume, brings it to the device, and reads it back past the page
 * cache. Zeros of the volume are zeros on the device afterwards, by being written where other bytes stand; a discard
 * promises nothing about what is read later. The first piece comes last, when all else has been compared: until then a
 * mark stands there, so that nothing takes a device that is half written for whole.
 *
 * @param path a block device that is at least as large; opened exclusively (O_EXCL), so that no other is who mounts it
 * @throws RestoreError DEVICE_BUSY before anything is written; DEVICE_HALF_WRITTEN with the cause afterwards;
 *   WRITTEN_DIFFERS
 */
export async function writeDevice(source: VolumeSource, path: string, options: WriteOptions): Promise<void> {
  const device = await openExclusively(path);
  try {
    // Nothing is touched before the volume can be read at all.
    const first = await readPiece(source, 0, options.signal);
    try {
      await writeRest(source, device, options);
      await compareRest(source, path, options);
      options.signal.throwIfAborted();
      await writeAll(device, first, 0);
      await device.sync();
      await compareFirst(first, path);
    } catch (error) {
      if (error instanceof RestoreError) throw error;
      throw new RestoreError(
        'DEVICE_HALF_WRITTEN',
        `${path} is half written, and nothing on it can be used: ${messageOf(error)}`,
        {
          cause: error,
          hint: 'repeat the command: it begins anew; journalctl -k tells of a device that fails',
        },
      );
    }
  } finally {
    await device.close();
  }
}

async function openExclusively(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDWR | constants.O_EXCL);
  } catch (error) {
    if (!isErrno(error, 'EBUSY')) throw error;
    throw new RestoreError('DEVICE_BUSY', `${path} is in use: mounted, swap, or a part of another device`, {
      cause: error,
      hint: `lsblk ${path}; findmnt -S ${path}; umount it first`,
      retryable: true,
    });
  }
}

/** All but the first piece, in whose place there is the mark. */
async function writeRest(
  source: VolumeSource,
  device: FileHandle,
  { signal, onProgress }: WriteOptions,
): Promise<void> {
  const mark = Buffer.alloc(markBytes);
  mark.write(`${restoreMark}\n`, 'latin1');
  await writeAll(device, mark, 0);
  await device.sync();
  const old = Buffer.alloc(pieceBytes);
  for await (const { offsetBytes, bytes } of piecesOf(source, signal)) {
    if (offsetBytes === 0) continue;
    if (bytes === null || isZero(bytes)) {
      const lengthBytes = Math.min(pieceBytes, source.virtualSizeBytes - offsetBytes);
      await writeZeros(device, old.subarray(0, lengthBytes), offsetBytes);
    } else await writeAll(device, bytes, offsetBytes);
    onProgress('writing', Math.min(offsetBytes + pieceBytes, source.virtualSizeBytes));
  }
  await device.sync();
}

/** What is zeros already is not written: on a device that takes its room as it is written, it goes on taking none. */
async function writeZeros(device: FileHandle, old: Buffer, offsetBytes: number): Promise<void> {
  await readAll(device, old, offsetBytes);
  if (!isZero(old)) await writeAll(device, zeros.subarray(0, old.length), offsetBytes);
}

/** @throws RestoreError WRITTEN_DIFFERS */
async function compareRest(source: VolumeSource, path: string, options: WriteOptions): Promise<void> {
  await using device = await openDirect(path);
  const buffer = directBuffer();
  for await (const { offsetBytes, bytes } of piecesOf(source, options.signal)) {
    if (offsetBytes === 0) continue;
    const lengthBytes = Math.min(pieceBytes, source.virtualSizeBytes - offsetBytes);
    const expected = bytes ?? zeros.subarray(0, lengthBytes);
    await requireSame(device, path, buffer, offsetBytes, expected);
    options.onProgress('comparing', offsetBytes + lengthBytes);
  }
}

async function compareFirst(first: Buffer, path: string): Promise<void> {
  await using device = await openDirect(path);
  await requireSame(device, path, directBuffer(), 0, first);
}

async function requireSame(
  device: FileHandle,
  path: string,
  buffer: Buffer,
  offsetBytes: number,
  expected: Buffer,
): Promise<void> {
  const found = await readAligned(device, buffer, offsetBytes, expected.length);
  if (found.equals(expected)) return;
  throw new RestoreError(
    'WRITTEN_DIFFERS',
    `${path} reads back differently after ${offsetBytes} bytes from what was written`,
    {
      hint: 'the device is at fault, or somebody else writes to it: journalctl -k; do not use what is on it',
    },
  );
}

function directBuffer(): Buffer {
  const [buffer] = directBuffers(1, pieceBytes);
  if (buffer === undefined) throw new Error('no buffer');
  return buffer;
}

interface Piece {
  readonly offsetBytes: number;
  /** `null`: zeros. */
  readonly bytes: Buffer | null;
}

/** The volume in pieces of one size. The buffer is used again for the next one. */
async function* piecesOf(source: VolumeSource, signal: AbortSignal): AsyncGenerator<Piece> {
  const data = (await source.extents(signal)).filter(({ zero }) => !zero);
  const buffer = Buffer.alloc(pieceBytes);
  let next = 0;
  for (let offsetBytes = 0; offsetBytes < source.virtualSizeBytes; offsetBytes += pieceBytes) {
    signal.throwIfAborted();
    const end = Math.min(offsetBytes + pieceBytes, source.virtualSizeBytes);
    while ((data[next]?.offsetBytes ?? end) + (data[next]?.lengthBytes ?? 0) <= offsetBytes) next++;
    const isData = (data[next]?.offsetBytes ?? end) < end;
    const bytes = buffer.subarray(0, end - offsetBytes);
    if (isData) await source.readInto(bytes, offsetBytes, signal);
    yield { offsetBytes, bytes: isData ? bytes : null };
  }
}

async function readPiece(source: VolumeSource, offsetBytes: number, signal: AbortSignal): Promise<Buffer> {
  const piece = Buffer.alloc(Math.min(pieceBytes, source.virtualSizeBytes - offsetBytes));
  if (piece.length > 0) await source.readInto(piece, offsetBytes, signal);
  return piece;
}

/** Past the page cache lengths are multiples of a block; what comes after the volume is not looked at. */
async function readAligned(
  device: FileHandle,
  buffer: Buffer,
  offsetBytes: number,
  lengthBytes: number,
): Promise<Buffer> {
  let filled = 0;
  while (filled < lengthBytes) {
    const { bytesRead } = await device.read(buffer, filled, buffer.length - filled, offsetBytes + filled);
    if (bytesRead === 0) throw new Error(`the device ends at ${offsetBytes + filled}`);
    filled += bytesRead;
  }
  return buffer.subarray(0, lengthBytes);
}

async function readAll(device: FileHandle, target: Buffer, offsetBytes: number): Promise<void> {
  let filled = 0;
  while (filled < target.length) {
    const { bytesRead } = await device.read(target, filled, target.length - filled, offsetBytes + filled);
    if (bytesRead === 0) throw new Error(`the device ends at ${offsetBytes + filled}`);
    filled += bytesRead;
  }
}

async function writeAll(device: FileHandle, bytes: Buffer, offsetBytes: number): Promise<void> {
  let done = 0;
  while (done < bytes.length)
    done += (await device.write(bytes, done, bytes.length - done, offsetBytes + done)).bytesWritten;
}

function isZero(bytes: Buffer): boolean {
  return bytes.equals(zeros.subarray(0, bytes.length));
}
