import { open } from 'node:fs/promises';

/** What stands at the beginning of a device while a volume is being restored onto the rest of it. */
export const restoreMark = 'stillpoint: this device is half restored';

/** True when a restore onto a device has begun and not ended. */
export async function isHalfRestored(device: string): Promise<boolean> {
  await using file = await open(device, 'r');
  const head = Buffer.alloc(restoreMark.length);
  await file.read(head, 0, head.length, 0);
  return head.toString('latin1') === restoreMark;
}
