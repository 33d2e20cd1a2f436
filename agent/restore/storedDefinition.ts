import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { RestoreError } from './errors.ts';

/** Far more than libvirt writes for any machine. */
const definitionBytesMax = 4 * 1024 * 1024;

/**
 * The definition of T1, as it was stored. It is read again, and compared again, whenever it is used: hours may lie
 * between a plan and the step that follows it.
 * @throws RestoreError BACKUP_DAMAGED
 */
export async function readStoredDefinition(stored: {
  readonly path: string;
  readonly sha256: string;
}): Promise<string> {
  const { path, sha256 } = stored;
  if ((await stat(path)).size <= definitionBytesMax) {
    const data = await readFile(path);
    if (createHash('sha256').update(data).digest('hex') === sha256) return data.toString('utf8');
  }
  throw new RestoreError('BACKUP_DAMAGED', `${path} is not what was stored: its digest differs`, {
    hint: 'stillpoint verify BACKUP tells what else is damaged; another copy, or an older backup, may be whole',
  });
}
