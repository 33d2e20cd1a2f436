import { randomUUID } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import { crc32 } from 'node:zlib';
import { imageInfo } from './imageInfo.ts';
import type { PrivateLibvirtd } from './libvirtd.ts';

const blockBytes = 4096;
const mib = 1024 * 1024;
const magic = Buffer.from('SPBLOCK1');
const checksumOffset = 52;

/** What a volume holds of the writer's work, from outside. */
export interface GuestDisk {
  /** Run that wrote the highest sequence; empty if nothing was ever written. */
  readonly runId: string;
  /** First sequence of that run. */
  readonly firstSequence: number;
  /** 0 if nothing was ever written. */
  readonly highestSequence: number;
  /** Whole blocks of the writer, of any run. */
  readonly count: number;
  /**
   * Sequences that must be there and are not: of the last `ringBlocks` up to the highest one, whatever run
   * wrote them. After a crash of the whole machine a later volume may lack the round that was under way.
   */
  readonly missing: readonly number[];
  /** Ring blocks that begin like the writer's and fail their checksum, or stand in another block's place. */
  readonly torn: number;
  readonly ringBlocks: number;
  /** Guest's clock at the highest sequence. */
  readonly wallMs: number;
}

interface Stamp {
  readonly runId: string;
  readonly sequence: number;
  readonly firstSequence: number;
  readonly wallMs: number;
  readonly ringBlocks: number;
}

/**
 * Reads a volume's ring past the guest (`qemu-img dd -U`): from the image of a running machine too, though only
 * a paused or stopped writer gives a view of one instant. Follows the backing chain.
 *
 * @param file path inside the laboratory
 */
export async function readGuestDisk(
  libvirtd: PrivateLibvirtd,
  file: string,
  options: { readonly regionMiB?: number | undefined } = {},
): Promise<GuestDisk> {
  const { format } = await imageInfo(libvirtd, file);
  const copy = path.join(libvirtd.root, 'tmp', `ring-${randomUUID()}`);
  const count = options.regionMiB ?? 16;
  // Up to QEMU 9.0 `count` counts what is skipped too; later ones give one MiB more than needed.
  const range = ['bs=1M', 'skip=1', `count=${count + 1}`, `if=${file}`, `of=${copy}`];
  try {
    await libvirtd.run('qemu-img', ['dd', '-U', '-f', format, '-O', 'raw', ...range]);
    return scanRing((await readFile(copy)).subarray(0, count * mib));
  } finally {
    await rm(copy, { force: true });
  }
}

/** The same for the bytes of a ring. */
export function scanRing(ring: Buffer): GuestDisk {
  const found = new Map<number, Stamp>();
  let torn = 0;
  let highest: Stamp | undefined;
  for (let block = 0; (block + 1) * blockBytes <= ring.length; block++) {
    const bytes = ring.subarray(block * blockBytes, (block + 1) * blockBytes);
    if (!bytes.subarray(0, magic.length).equals(magic)) continue;
    const stamp = stampOf(bytes);
    if (stamp === undefined || stamp.sequence % stamp.ringBlocks !== block) {
      torn++;
      continue;
    }
    found.set(stamp.sequence, stamp);
    if (highest === undefined || stamp.sequence > highest.sequence) highest = stamp;
  }
  if (highest === undefined) {
    return {
      runId: '',
      firstSequence: 0,
      highestSequence: 0,
      count: 0,
      missing: [],
      torn,
      ringBlocks: 0,
      wallMs: 0,
    };
  }
  const missing: number[] = [];
  const from = Math.max(1, highest.sequence - highest.ringBlocks + 1);
  for (let sequence = from; sequence <= highest.sequence; sequence++) {
    if (!found.has(sequence)) missing.push(sequence);
  }
  const { sequence: highestSequence, ...rest } = highest;
  return { ...rest, highestSequence, count: found.size, missing, torn };
}

/** The block's stamp (`struct stamp` of guest/writer.c); `undefined` when the checksum is wrong. */
function stampOf(block: Buffer): Stamp | undefined {
  const bytes = Buffer.from(block);
  const checksum = bytes.readUInt32LE(checksumOffset);
  bytes.writeUInt32LE(0, checksumOffset);
  if (crc32(bytes) !== checksum) return undefined;
  return {
    runId: bytes.readBigUInt64LE(8).toString(16).padStart(16, '0'),
    sequence: Number(bytes.readBigUInt64LE(16)),
    firstSequence: Number(bytes.readBigUInt64LE(24)),
    wallMs: Number(bytes.readBigUInt64LE(32) / 1_000_000n),
    ringBlocks: bytes.readUInt32LE(48),
  };
}
