import { inflateSync } from 'node:zlib';

/** Pixels of a screen, one after the other, `channels` bytes each. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly channels: number;
  readonly pixels: Buffer;
}

/** No screen has more: 16 384 × 16 384 pixels of 4 bytes. */
const pixelBytesMax = 2 ** 30;
const pngMagic = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
/** Channels by the colour types that QEMU writes: RGB and RGBA. */
const pngChannels: Readonly<Record<number, number>> = { 2: 3, 6: 4 };

/**
 * Reads a screenshot as QEMU makes them: binary PPM, or PNG of 8 bits a channel without interlacing.
 * @throws Error for anything else
 */
export function parsePicture(bytes: Buffer): Picture {
  return bytes.subarray(0, pngMagic.length).equals(pngMagic) ? parsePng(bytes) : parsePpm(bytes);
}

/** `P6`, width and height, the highest value, then the pixels; one line each, as QEMU writes them. */
function parsePpm(bytes: Buffer): Picture {
  const header = /^P6\n(\d+) (\d+)\n255\n/.exec(bytes.toString('latin1', 0, 64));
  if (header === null) throw new Error('the screenshot is neither PNG nor PPM');
  const [width, height] = [Number(header[1]), Number(header[2])];
  return picture(width, height, 3, bytes.subarray(header[0].length));
}

function picture(width: number, height: number, channels: number, pixels: Buffer): Picture {
  if (width * height * channels !== pixels.length)
    throw new Error(`a screenshot of ${width}x${height} has ${pixels.length} bytes of pixels`);
  return { width, height, channels, pixels };
}

/** Chunks of length, type, data and checksum (W3C, PNG): IHDR first, the pixels in one or more IDAT. */
function parsePng(bytes: Buffer): Picture {
  const data: Buffer[] = [];
  let header: Buffer | undefined;
  for (let at = pngMagic.length; at + 12 <= bytes.length; ) {
    const lengthBytes = bytes.readUInt32BE(at);
    const type = bytes.toString('latin1', at + 4, at + 8);
    const content = bytes.subarray(at + 8, at + 8 + lengthBytes);
    if (type === 'IHDR') header = content;
    if (type === 'IDAT') data.push(content);
    at += 12 + lengthBytes;
  }
  if (header?.length !== 13) throw new Error('the screenshot is a PNG without a header');
  const [width, height] = [header.readUInt32BE(0), header.readUInt32BE(4)];
  const channels = pngChannels[header.readUInt8(9)];
  if (header.readUInt8(8) !== 8 || channels === undefined || header.readUInt8(12) !== 0)
    throw new Error('the screenshot is a PNG of a kind that is not known');
  const lines = inflateSync(Buffer.concat(data), { maxOutputLength: pixelBytesMax });
  return picture(width, height, channels, unfilter(lines, width * channels, height, channels));
}

/** Each line begins with the number of a filter, by which its bytes are told from those before (W3C, PNG, 9). */
function unfilter(lines: Buffer, lineBytes: number, height: number, channels: number): Buffer {
  if (lines.length !== (lineBytes + 1) * height) throw new Error('the screenshot is an incomplete PNG');
  const pixels = Buffer.alloc(lineBytes * height);
  for (let line = 0; line < height; line += 1) {
    const from = line * (lineBytes + 1);
    const filter = lines.readUInt8(from);
    const start = line * lineBytes;
    for (let x = 0; x < lineBytes; x += 1) {
      const left = x < channels ? 0 : (pixels[start + x - channels] ?? 0);
      const above = line === 0 ? 0 : (pixels[start + x - lineBytes] ?? 0);
      const corner = line === 0 || x < channels ? 0 : (pixels[start + x - lineBytes - channels] ?? 0);
      pixels[start + x] = (lines[from + 1 + x] ?? 0) + predicted(filter, left, above, corner);
    }
  }
  return pixels;
}

function predicted(filter: number, left: number, above: number, corner: number): number {
  switch (filter) {
    case 0:
      return 0;
    case 1:
      return left;
    case 2:
      return above;
    case 3:
      return (left + above) >> 1;
    case 4:
      return paeth(left, above, corner);
    default:
      throw new Error(`the screenshot is a PNG with the unknown filter ${filter}`);
  }
}

function paeth(left: number, above: number, corner: number): number {
  const estimate = left + above - corner;
  const toLeft = Math.abs(estimate - left);
  const toAbove = Math.abs(estimate - above);
  const toCorner = Math.abs(estimate - corner);
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}
