import { deflateSync } from 'node:zlib';
import t from 'tap';
import { parsePicture } from './picture.ts';

const [width, height, channels] = [4, 5, 3];
const lineBytes = width * channels;
/** Neither smooth nor constant, so that every filter matters. */
const pixels = Buffer.from(
  Array.from({ length: lineBytes * height }, (_, index) => (index * index * 7 + index) % 256),
);

function chunk(type: string, data: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  return Buffer.concat([length, Buffer.from(type, 'latin1'), data, Buffer.alloc(4)]);
}

/** A PNG whose lines are filtered in all five ways, its data in two chunks. */
function png(colourType = 2, interlace = 0): Buffer {
  const at = (line: number, x: number): number =>
    line < 0 || x < 0 ? 0 : (pixels[line * lineBytes + x] ?? 0);
  const lines: number[] = [];
  for (let line = 0; line < height; line += 1) {
    lines.push(line);
    for (let x = 0; x < lineBytes; x += 1) {
      const [left, above, corner] = [at(line, x - channels), at(line - 1, x), at(line - 1, x - channels)];
      const estimate = left + above - corner;
      const nearest = [left, above, corner].toSorted(
        (a, b) => Math.abs(estimate - a) - Math.abs(estimate - b),
      )[0];
      const before = [0, left, above, (left + above) >> 1, nearest ?? 0][line] ?? 0;
      lines.push((at(line, x) - before + 256) % 256);
    }
  }
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.writeUInt8(8, 8);
  header.writeUInt8(colourType, 9);
  header.writeUInt8(interlace, 12);
  const data = deflateSync(Buffer.from(lines));
  const magic = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1');
  const parts = [chunk('IHDR', header), chunk('IDAT', data.subarray(0, 9)), chunk('IDAT', data.subarray(9))];
  return Buffer.concat([magic, ...parts, chunk('IEND', Buffer.alloc(0))]);
}

void t.test('PNG and PPM of one screen give the same pixels', (t) => {
  t.same(parsePicture(png()), { width, height, channels, pixels });
  const ppm = Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), pixels]);
  t.same(parsePicture(ppm), { width, height, channels, pixels });
  t.end();
});

void t.test('what is no screenshot, or only a part of one, is refused', (t) => {
  t.throws(() => parsePicture(Buffer.from('<html>')), /neither PNG nor PPM/);
  t.throws(() => parsePicture(Buffer.from('P6\n4 5\n255\nabc')), /3 bytes of pixels/);
  t.throws(() => parsePicture(png().subarray(0, 60)));
  t.throws(() => parsePicture(png(3)), /kind that is not known/);
  t.throws(() => parsePicture(png(2, 1)), /kind that is not known/);
  t.throws(() => parsePicture(png(6)), /incomplete/);
  t.end();
});
