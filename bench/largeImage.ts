import { randomBytes } from 'node:crypto';
import { open, rm } from 'node:fs/promises';
import type { Lab } from '../test/lab/lab.ts';

export const mib = 1024 * 1024;
export const volumeMiB = 4096;
/** Data and holes alternate: 16 384 extents, 2 GiB of data. */
export const extentBytes = 128 * 1024;

/** A qcow2 image with many extents of incompressible data. */
export async function writeImage(lab: Lab, image: string): Promise<void> {
  const raw = `${image}.raw`;
  const handle = await open(raw, 'wx');
  try {
    await handle.truncate(volumeMiB * mib);
    const pattern = randomBytes(extentBytes);
    // The first 32 MiB are the writer's.
    for (let offset = 32 * mib; offset < volumeMiB * mib; offset += 2 * extentBytes) {
      pattern.writeBigUInt64LE(BigInt(offset));
      await handle.write(pattern, 0, extentBytes, offset);
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  await lab.run('qemu-img', ['convert', '-O', 'qcow2', raw, image], { timeoutMs: 300_000 });
  await rm(raw);
}
