import type { EditedFile } from './editedFile.ts';

/** An entry of an L1 or L2 table. */
export interface TableEntry {
  /** 0: none. */
  readonly offsetBytes: number;
  /** Its refcount is 1, so it may be written in place. */
  readonly copied: boolean;
  readonly compressed: boolean;
  /** Reads as zeros, whatever is at its offset. */
  readonly zero: boolean;
}

const copiedBit = 0x8000_0000;
const compressedBit = 0x4000_0000;

/** Bits 9 to 55 are the offset. */
export function parseEntry({ high, low }: { readonly high: number; readonly low: number }): TableEntry {
  return {
    offsetBytes: (high & 0x00ff_ffff) * 2 ** 32 + ((low & 0xffff_fe00) >>> 0),
    copied: (high & copiedBit) !== 0,
    compressed: (high & compressedBit) !== 0,
    zero: (low & 1) !== 0,
  };
}

/** Writes the entry of a cluster that is used once; 0 is no cluster. */
export async function writeTableEntry(
  file: EditedFile,
  position: number,
  offsetBytes: number,
  flags: 'copied' | 'none' = 'copied',
): Promise<void> {
  const entry = Buffer.alloc(8);
  if (offsetBytes !== 0) {
    const high = Math.floor(offsetBytes / 2 ** 32) + (flags === 'copied' ? copiedBit : 0);
    entry.writeUInt32BE(high, 0);
    entry.writeUInt32BE(offsetBytes % 2 ** 32, 4);
  }
  await file.write(position, entry);
}
