import { dirname, join } from 'node:path';

/** Name of our directory beside the images; also what `doctor` looks for. */
export const retainDirectoryName = '.stillpoint';

/** Where frozen images of a machine's images stand between snapshot and retain. */
export function retainDirectoryFor(imageFile: string, configured: string | null): string {
  return configured ?? join(dirname(imageFile), retainDirectoryName);
}

/** The job's own directory in it. QEMU's user must be able to traverse it, but need not list it. */
export function workDirectoryFor(imageFile: string, configured: string | null, jobId: string): string {
  return join(retainDirectoryFor(imageFile, configured), jobId);
}

/** Traversable by QEMU's user, readable by root only. */
export const workDirectoryMode = 0o711;
