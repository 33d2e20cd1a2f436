import { openRegular } from '../../common/copy.ts';

const magic = 0x514649fb; // "QFI\xfb"
const incompatibleCorrupt = 1n << 1n;
const incompatibleDataFile = 1n << 2n;

/** What the fixed part of a qcow2 header says (QEMU, docs/interop/qcow2.txt). */
export interface Qcow2Header {
  readonly virtualSizeBytes: bigint;
  readonly hasBackingFile: boolean;
  readonly hasDataFile: boolean;
  readonly isCorrupt: boolean;
  readonly isEncrypted: boolean;
}

/**
 * Reads a header that may come from anybody, without opening anything that it names: `qemu-img info` opens an
 * external data file already. `null` when the file is no qcow2 image.
 */
export async function readQcow2Header(path: string): Promise<Qcow2Header | null> {
  const file = await openRegular(path);
  try {
    const header = Buffer.alloc(104);
    const { bytesRead } = await file.read(header, 0, header.length, 0);
    if (bytesRead < 72 || header.readUInt32BE(0) !== magic) return null;
    const version = header.readUInt32BE(4);
    if (version !== 2 && version !== 3) return null;
    // Version 2 ends before the feature bits.
    const incompatible = version === 3 ? header.readBigUInt64BE(72) : 0n;
    return {
      virtualSizeBytes: header.readBigUInt64BE(24),
      hasBackingFile: header.readBigUInt64BE(8) !== 0n,
      hasDataFile: (incompatible & incompatibleDataFile) !== 0n,
      isCorrupt: (incompatible & incompatibleCorrupt) !== 0n,
      isEncrypted: header.readUInt32BE(32) !== 0,
    };
  } finally {
    await file.close();
  }
}
