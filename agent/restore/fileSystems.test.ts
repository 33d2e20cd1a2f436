import { randomInt } from 'node:crypto';
import t from 'tap';
import { bufferSource } from '../../storage/repository/streamWriter.ts';
import { findFileSystems } from './fileSystems.ts';

const sector = 512;
const mebibyte = 1024 * 1024;

/** Marks a place as the beginning of an ext file system. */
function putExt(disk: Buffer, offsetBytes: number): void {
  disk.writeUInt16LE(0xef53, offsetBytes + 0x438);
}

function putMbrEntry(
  disk: Buffer,
  tableSector: number,
  index: number,
  type: number,
  start: number,
  length: number,
): void {
  const at = tableSector * sector + 446 + 16 * index;
  disk.writeUInt8(type, at + 4);
  disk.writeUInt32LE(start, at + 8);
  disk.writeUInt32LE(length, at + 12);
  disk.writeUInt16LE(0xaa55, tableSector * sector + 510);
}

/** A disk with a GPT of these partitions. */
function gptDisk(
  sectorBytes: number,
  partitions: readonly (readonly [first: number, last: number])[],
): Buffer {
  const disk = Buffer.alloc(8 * mebibyte);
  putMbrEntry(disk, 0, 0, 0xee, 1, 0xffffffff);
  disk.write('EFI PART', sectorBytes, 'latin1');
  disk.writeBigUInt64LE(2n, sectorBytes + 72);
  disk.writeUInt32LE(128, sectorBytes + 80);
  disk.writeUInt32LE(128, sectorBytes + 84);
  for (const [index, [first, last]] of partitions.entries()) {
    const at = 2 * sectorBytes + 128 * index;
    disk.fill(0xa5, at, at + 32);
    disk.writeBigUInt64LE(BigInt(first), at + 32);
    disk.writeBigUInt64LE(BigInt(last), at + 40);
  }
  return disk;
}

void t.test('a volume without a table is one file system', async (t) => {
  const disk = Buffer.alloc(mebibyte);
  putExt(disk, 0);
  t.same(await findFileSystems(bufferSource(disk)), [
    { partition: 0, offsetBytes: 0, lengthBytes: mebibyte, kind: 'ext' },
  ]);
  t.same(await findFileSystems(bufferSource(Buffer.alloc(sector))), [], 'nothing is nothing');
});

void t.test('what is on a volume is told by what it begins with', async (t) => {
  for (const [kind, at, magic] of [
    ['xfs', 0, 'XFSB'],
    ['swap', 4086, 'SWAPSPACE2'],
    ['RAID', 4096, '\xfc\x4e\x2b\xa9'],
    ['LVM', 536, 'LVM2 001'],
    ['btrfs', 65_600, '_BHRfS_M'],
  ] as const) {
    const disk = Buffer.alloc(mebibyte);
    disk.write(magic, at, 'latin1');
    t.match(await findFileSystems(bufferSource(disk)), [{ partition: 0, kind }]);
  }
});

void t.test('partitions of a GPT have their numbers, whatever the size of a sector', async (t) => {
  for (const sectorBytes of [512, 4096]) {
    const first = mebibyte / sectorBytes;
    const disk = gptDisk(sectorBytes, [
      [first, 2 * first - 1],
      [3 * first, 5 * first - 1],
    ]);
    putExt(disk, 3 * mebibyte);
    t.same(await findFileSystems(bufferSource(disk)), [
      { partition: 1, offsetBytes: mebibyte, lengthBytes: mebibyte, kind: 'unknown' },
      { partition: 2, offsetBytes: 3 * mebibyte, lengthBytes: 2 * mebibyte, kind: 'ext' },
    ]);
  }
});

void t.test('logical partitions count from 5', async (t) => {
  const disk = Buffer.alloc(8 * mebibyte);
  putMbrEntry(disk, 0, 0, 0x83, 2048, 2048);
  putMbrEntry(disk, 0, 1, 0x0f, 4096, 8192);
  putMbrEntry(disk, 4096, 0, 0x83, 64, 1024);
  putMbrEntry(disk, 4096, 1, 0x05, 2048, 2048);
  putMbrEntry(disk, 6144, 0, 0x83, 64, 1024);
  putExt(disk, (6144 + 64) * sector);
  const found = await findFileSystems(bufferSource(disk));
  t.same(
    found.map(({ partition, offsetBytes, kind }) => [partition, offsetBytes / sector, kind]),
    [
      [1, 2048, 'unknown'],
      [5, 4160, 'unknown'],
      [6, 6208, 'ext'],
    ],
  );
});

void t.test('a table that leads outside the volume, or in a circle, ends', async (t) => {
  const circle = Buffer.alloc(2 * mebibyte);
  putMbrEntry(circle, 0, 0, 0x05, 64, 1024);
  putMbrEntry(circle, 64, 0, 0x83, 1, 8);
  putMbrEntry(circle, 64, 1, 0x05, 0, 1024);
  t.equal((await findFileSystems(bufferSource(circle))).length, 1);
  const far = gptDisk(512, [
    [1, Number.MAX_SAFE_INTEGER],
    [20_000, 10],
  ]);
  t.same(await findFileSystems(bufferSource(far)), []);
  const away = gptDisk(512, []);
  away.writeBigUInt64LE(2n ** 63n, 512 + 72);
  t.same(await findFileSystems(bufferSource(away)), []);
});

void t.test('whatever a guest writes into its tables, what is found lies inside the volume', async (t) => {
  const seed = Number(process.env['STILLPOINT_SEED'] ?? randomInt(2 ** 31));
  t.comment(`STILLPOINT_SEED=${seed}`);
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  for (let round = 0; round < 200; round += 1) {
    const disk = gptDisk(512, [[2048, 4095]]);
    if (random(2) === 0) putMbrEntry(disk, 0, random(4), 0x05, random(16_384), random(2 ** 31));
    for (let count = random(40); count > 0; count -= 1) disk.writeUInt8(random(256), random(2048));
    for (const { offsetBytes, lengthBytes } of await findFileSystems(bufferSource(disk))) {
      if (offsetBytes >= 0 && lengthBytes > 0 && offsetBytes + lengthBytes <= disk.length) continue;
      t.fail(`round ${round}: ${offsetBytes}+${lengthBytes}`);
    }
  }
});
