import { chmod, mkdir, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';

/**
 * Makes the directory in which a job has its sockets, ours alone, new. The one above it lets everybody pass, because
 * QEMU's user must get to a directory of its own in it, whatever the umask and whoever made it.
 */
export async function makeRunDirectory(directory: string): Promise<void> {
  const above = dirname(directory);
  await mkdir(above, { recursive: true });
  const { mode } = await stat(above);
  if ((mode & 0o111) !== 0o111) await chmod(above, (mode & 0o7777) | 0o111);
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { mode: 0o700 });
}
