import { createHash } from 'node:crypto';
import { open, rm } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { RestoreError } from './errors.ts';

/**
 * libvirt's save image (`virQEMUSaveHeader`, little-endian on every host that we run on):
 * magic[16], version u32, data_len u32, was_running u32, compressed u32, cookieOffset u32, unused u32[14];
 * then data_len bytes: the definition, NUL, and at cookieOffset (if not 0) a cookie, NUL; then QEMU's stream.
 */
const headerBytes = 92;
const magic = 'LibvirtQemudSave';
const versionKnown = 2;
const dataBytesMax = 16 * 1024 * 1024;
const copyBytes = 4 * 1024 * 1024;
/** `virQEMUSaveFormat`: RAW to LZOP hold a plain stream after the header; later ones use absolute offsets. */
const streamFormatMax = 4;

interface SaveHeader {
  readonly dataBytes: number;
  readonly compressed: number;
  readonly cookieOffset: number;
  readonly raw: Buffer;
}

/**
 * Writes a copy of a save image with another definition inside: needed where the restored machine gets its own
 * UUID, which libvirt does not let a restore change. The original's digest is checked on the way.
 * @throws RestoreError STATE_FORMAT_UNSUPPORTED, BACKUP_DAMAGED; or the reason of `signal`
 */
export async function rewriteSaveImage(options: {
  readonly from: string;
  readonly to: string;
  readonly sha256: string;
  readonly definition: (original: string) => string;
  readonly signal: AbortSignal;
  readonly onProgress?: (bytesDone: number) => void;
}): Promise<void> {
  const source = await open(options.from, 'r');
  try {
    const target = await open(options.to, 'wx', 0o600);
    try {
      await rewrite(source, target, options);
      await target.sync();
    } catch (error) {
      await rm(options.to, { force: true });
      throw error;
    } finally {
      await target.close();
    }
  } finally {
    await source.close();
  }
}

/**
 * The definition inside a save image, and what libvirt keeps beside it (`<cookie>`), such as the processor.
 * @throws RestoreError STATE_FORMAT_UNSUPPORTED
 */
export async function readSaveImage(
  path: string,
): Promise<{ readonly definition: string; readonly cookie: string | null }> {
  await using source = await open(path, 'r');
  const header = parseHeader(await readExactly(source, 0, headerBytes));
  const data = await readExactly(source, headerBytes, header.dataBytes);
  const textAt = (start: number): string =>
    untilNul(data.subarray(start)).toString('utf8').replace(/\0$/, '');
  return { definition: textAt(0), cookie: header.cookieOffset === 0 ? null : textAt(header.cookieOffset) };
}

async function rewrite(
  source: FileHandle,
  target: FileHandle,
  options: Parameters<typeof rewriteSaveImage>[0],
): Promise<void> {
  const header = parseHeader(await readExactly(source, 0, headerBytes));
  const data = await readExactly(source, headerBytes, header.dataBytes);
  const [newHeader, newData] = replaceDefinition(header, data, options.definition);
  await target.write(newHeader, 0, newHeader.length, 0);
  await target.write(newData, 0, newData.length, headerBytes);
  const hash = createHash('sha256').update(header.raw).update(data);
  let readAt = headerBytes + data.length;
  let writeAt = headerBytes + newData.length;
  const buffer = Buffer.allocUnsafe(copyBytes);
  for (;;) {
    options.signal.throwIfAborted();
    const { bytesRead } = await source.read(buffer, 0, copyBytes, readAt);
    if (bytesRead === 0) break;
    const piece = buffer.subarray(0, bytesRead);
    hash.update(piece);
    await target.write(piece, 0, bytesRead, writeAt);
    readAt += bytesRead;
    writeAt += bytesRead;
    options.onProgress?.(readAt);
  }
  if (hash.digest('hex') !== options.sha256) {
    throw new RestoreError('BACKUP_DAMAGED', `${options.from} is not what was stored: its digest differs`, {
      hint: 'stillpoint verify --data BACKUP; take another backup of the machine: stillpoint list',
    });
  }
}

async function readExactly(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, position);
  if (bytesRead !== length) throw unsupported('it ends too early');
  return buffer;
}

function parseHeader(raw: Buffer): SaveHeader {
  if (raw.toString('latin1', 0, 16) !== magic) throw unsupported('it is not a complete save image');
  const version = raw.readUInt32LE(16);
  if (version !== versionKnown) throw unsupported(`its version is ${version}`);
  const dataBytes = raw.readUInt32LE(20);
  const cookieOffset = raw.readUInt32LE(32);
  if (dataBytes === 0 || dataBytes > dataBytesMax || cookieOffset >= dataBytes)
    throw unsupported('its header is damaged');
  return { dataBytes, compressed: raw.readUInt32LE(28), cookieOffset, raw };
}

function replaceDefinition(
  header: SaveHeader,
  data: Buffer,
  change: (original: string) => string,
): readonly [Buffer, Buffer] {
  const end = data.indexOf(0);
  if (end < 0) throw unsupported('its definition has no end');
  const definition = Buffer.from(`${change(data.toString('utf8', 0, end))}\0`, 'utf8');
  const cookie = header.cookieOffset === 0 ? Buffer.alloc(0) : untilNul(data.subarray(header.cookieOffset));
  const wanted = Buffer.concat([definition, cookie]);
  // The length stays if it can: nothing that comes after moves then.
  const grows = wanted.length > header.dataBytes;
  if (grows && header.compressed > streamFormatMax)
    throw unsupported('its format does not allow a longer definition');
  const newData = grows ? wanted : Buffer.concat([wanted, Buffer.alloc(header.dataBytes - wanted.length)]);
  const newHeader = Buffer.from(header.raw);
  newHeader.writeUInt32LE(newData.length, 20);
  newHeader.writeUInt32LE(header.cookieOffset === 0 ? 0 : definition.length, 32);
  return [newHeader, newData];
}

function untilNul(data: Buffer): Buffer {
  const end = data.indexOf(0);
  return end < 0 ? data : data.subarray(0, end + 1);
}

function unsupported(why: string): RestoreError {
  return new RestoreError(
    'STATE_FORMAT_UNSUPPORTED',
    `the memory state cannot be given to another machine: ${why}`,
    {
      hint: 'restore with --start boot, or in place',
    },
  );
}
