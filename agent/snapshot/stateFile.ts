import { open, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { exists, fsyncDirectory, fsyncFile } from '../../common/files.ts';

/** libvirt's marks at the start of a save image (`virQEMUSaveHeader.magic`, 16 bytes). */
const magicComplete = 'LibvirtQemudSave';

export type StateFileCondition = 'absent' | 'partial' | 'complete';

/** What stands at the path of a memory state. Anything that is not a complete save image is `partial`. */
export async function inspectStateFile(path: string): Promise<StateFileCondition> {
  try {
    const file = await open(path, 'r');
    try {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(16), 0, 16, 0);
      return buffer.toString('latin1', 0, bytesRead) === magicComplete ? 'complete' : 'partial';
    } finally {
      await file.close();
    }
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 'absent';
    throw error;
  }
}

/** libvirt rewrites the magic without a sync and syncs no directory: this makes the state durable. */
export async function makeStateDurable(path: string): Promise<void> {
  await fsyncFile(path);
  await fsyncDirectory(dirname(path));
}

/** When libvirt made the file: just after it had stopped the vCPUs. */
export async function stateFileBirth(path: string): Promise<Date> {
  return (await stat(path)).birthtime;
}

/** When libvirt completed the file, in milliseconds since 1970. */
export async function stateFileTime(path: string): Promise<number> {
  return (await stat(path)).mtimeMs;
}

/** Removes a state file; QEMU or libvirt may have removed it already. */
export async function removeStateFile(path: string): Promise<void> {
  if (!(await exists(path))) return;
  await rm(path, { force: true });
  await fsyncDirectory(dirname(path));
}
