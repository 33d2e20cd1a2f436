import { mkdtemp, open, rm, stat, writeFile } from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';

import { execa } from 'execa';

import type { BackingImage, DomainVolume } from '../../agent/hypervisor/domainXml.ts';
import { isErrno } from '../../common/errors.ts';
import type { ImageFormat } from '../../common/qemuImage.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { refusal } from './errors.ts';

/** The guest writes blocks of this size, number N into slot N modulo the number of slots. */
export const blockSizeBytes = 4096;
export const slotCount = 64;
const toolTimeoutMs = 30_000;
const chainLengthMax = 200;

/** Runs one of QEMU's tools. */
export async function tool(
  command: 'qemu-img' | 'qemu-io',
  args: readonly string[],
  cwd = '/',
): Promise<void> {
  await execa(command, [...args], { timeout: toolTimeoutMs, stdin: 'ignore', cwd });
}

export async function createImage(
  path: string,
  options: { format: ImageFormat; sizeBytes: number; backing?: string | undefined },
): Promise<void> {
  const over = options.backing === undefined ? [] : ['-F', 'qcow2', '-b', options.backing];
  await tool('qemu-img', ['create', '-q', '-f', options.format, ...over, path, String(options.sizeBytes)]);
}

/** Changes only the header; what came from the former backing file then reads as zeros. */
export async function setHeaderBacking(image: string, backing: BackingImage | undefined): Promise<void> {
  const file = backing?.path ?? backing?.nbdUrl;
  const onto = file === undefined ? ['-b', ''] : ['-F', backing?.format ?? 'raw', '-b', file];
  await tool('qemu-img', ['rebase', '-q', '-u', '-f', 'qcow2', ...onto, image]);
}

/**
 * Sets the count of references of a cluster in a qcow2 image with the usual cluster size and counts of 16 bits, which
 * nobody has open. One behind the end comes to be there.
 */
export async function setRefcount(
  image: string,
  cluster: number | 'behind the end',
  count: number,
): Promise<void> {
  const clusterBytes = 65_536;
  await using file = await open(image, 'r+');
  const sizeBytes = (await file.stat()).size;
  const index = cluster === 'behind the end' ? Math.ceil(sizeBytes / clusterBytes) : cluster;
  const numberAt = async (offset: number): Promise<number> =>
    Number((await file.read(Buffer.alloc(8), 0, 8, offset)).buffer.readBigUInt64BE());
  // The header's offset of the refcount table (docs/interop/qcow2.txt), whose first entry is that of the first block.
  const block = await numberAt(await numberAt(48));
  const entry = Buffer.alloc(2);
  entry.writeUInt16BE(count);
  await file.write(entry, 0, entry.length, block + index * entry.length);
  await file.truncate(Math.max(sizeBytes, (index + 1) * clusterBytes));
}

/** Has the first block of counts of references seem to stand so many bytes further on. */
export async function moveRefcounts(image: string, bytes: number): Promise<void> {
  await using file = await open(image, 'r+');
  const at = Number((await file.read(Buffer.alloc(8), 0, 8, 48)).buffer.readBigUInt64BE());
  const entry = (await file.read(Buffer.alloc(8), 0, 8, at)).buffer;
  entry.writeBigUInt64BE(entry.readBigUInt64BE() + BigInt(bytes));
  await file.write(entry, 0, entry.length, at);
}

/** What the guest writes as number `sequence`: its number and filling that depends on it. */
function guestBlock(sequence: number): Buffer {
  const block = Buffer.alloc(blockSizeBytes, sequence % 251);
  block.write(`SEQ ${String(sequence).padStart(12, '0')}\n`, 'latin1');
  return block;
}

/** Writes one guest block into an image that nobody else has open. */
export async function writeGuestBlock(image: string, format: string, sequence: number): Promise<void> {
  const offset = (sequence % slotCount) * blockSizeBytes;
  const scratch = await mkdtemp(join(tmpdir(), 'stillpoint-sim-'));
  try {
    await writeFile(join(scratch, 'block'), guestBlock(sequence));
    // qemu-io knows no quotes in its commands: a name without spaces, in its working directory.
    await tool('qemu-io', ['-f', format, '-c', `write -s block ${offset} ${blockSizeBytes}`, image], scratch);
  } finally {
    await rm(scratch, { recursive: true });
  }
}

/**
 * The numbers of the guest's blocks that can be read through an image and what is below it, ascending.
 * @throws Error when a block is torn
 */
export async function readGuestSequences(image: string, format: ImageFormat = 'qcow2'): Promise<number[]> {
  const scratch = await mkdtemp(join(tmpdir(), 'stillpoint-sim-'));
  try {
    const raw = join(scratch, 'raw');
    const count = `count=${slotCount}`;
    await tool('qemu-img', [
      'dd',
      '-U',
      '-f',
      format,
      '-O',
      'raw',
      'bs=4096',
      count,
      `if=${image}`,
      `of=${raw}`,
    ]);
    const file = await open(raw, 'r');
    try {
      const { buffer } = await file.read(Buffer.alloc(slotCount * blockSizeBytes), 0, null, 0);
      return sequencesIn(buffer);
    } finally {
      await file.close();
    }
  } finally {
    await rm(scratch, { recursive: true });
  }
}

function sequencesIn(content: Buffer): number[] {
  const found: number[] = [];
  for (let slot = 0; slot < slotCount; slot += 1) {
    const block = content.subarray(slot * blockSizeBytes, (slot + 1) * blockSizeBytes);
    const match = /^SEQ (\d{12})\n/.exec(block.toString('latin1', 0, 17));
    if (match === null) {
      if (block.some((byte) => byte !== 0)) throw new Error(`slot ${slot} is torn`);
      continue;
    }
    const sequence = Number(match[1]);
    if (!block.equals(guestBlock(sequence))) throw new Error(`block ${sequence} is torn`);
    found.push(sequence);
  }
  return found.toSorted((a, b) => a - b);
}

/**
 * The images below a volume's top image as QEMU would open them: what the definition says if it says
 * something (an empty backing store is the end, trap 1), otherwise what the headers say.
 * @throws HypervisorError when an image is missing
 */
export async function openChain(volume: DomainVolume): Promise<readonly BackingImage[]> {
  if (volume.path === undefined) return [];
  await requireImage(volume.path);
  if (volume.backingChain !== undefined) {
    for (const { path } of volume.backingChain) if (path !== undefined) await requireImage(path);
    return volume.backingChain;
  }
  const chain: BackingImage[] = [];
  let top = { path: volume.path, format: volume.format };
  while (top.format === 'qcow2') {
    const { backing } = await readImageInfo(top.path, 'qcow2', { inUse: true });
    if (backing === null) break;
    if (backing.path.startsWith('nbd+unix:')) {
      await requireServer(backing.path);
      chain.push({ path: undefined, format: backing.format, nbdUrl: backing.path });
      break;
    }
    const next = { path: resolve(dirname(top.path), backing.path), format: backing.format ?? 'raw' };
    await requireImage(next.path);
    chain.push(next);
    if (chain.length > chainLengthMax) throw refusal('operationFailed', 'backing chain is too long');
    top = next;
  }
  return chain;
}

async function requireServer(url: string): Promise<void> {
  try {
    await tool('qemu-img', ['info', '-f', 'raw', url]);
  } catch (error) {
    throw refusal('internal', `qemu unexpectedly closed the monitor: ${String(error).slice(0, 200)}`);
  }
}

export async function requireImage(path: string): Promise<void> {
  try {
    await stat(path);
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
    throw refusal(
      'system',
      `Cannot access storage file '${path}': No such file or directory`,
      constants.errno.ENOENT,
    );
  }
}
