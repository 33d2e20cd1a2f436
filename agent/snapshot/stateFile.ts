import { open, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { copyFileDurable } from '../../common/copy.ts';
import type { ReadOptions } from '../../common/pieces.ts';
import { exists, fsyncDirectory, fsyncFile, renameDurable } from '../../common/files.ts';

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

/** The paths of a memory state in a plan. */
export interface StatePaths {
  readonly stateFile: string;
  readonly stowedStateFile: string | null;
}

/** Where the memory state is now: libvirt's file, or where it was moved off the RAM disk. */
export async function currentStateFile(paths: StatePaths): Promise<string> {
  const { stateFile, stowedStateFile } = paths;
  return stowedStateFile !== null && (await exists(stowedStateFile)) ? stowedStateFile : stateFile;
}

/**
 * Moves a complete memory state off the RAM disk: the host has its memory back while the merge runs, and the
 * state outlives the host. May be started again after a crash.
 */
export async function stowState(paths: StatePaths, options: ReadOptions): Promise<void> {
  const { stateFile, stowedStateFile } = paths;
  if (stowedStateFile === null || (await inspectStateFile(stateFile)) !== 'complete') return;
  const copying = `${stowedStateFile}.copying`;
  await rm(copying, { force: true });
  try {
    await copyFileDurable({ ...options, from: stateFile, to: copying, mode: 0o600 });
  } catch (error) {
    await rm(copying, { force: true });
    throw error;
  }
  await renameDurable(copying, stowedStateFile);
  await removeStateFile(stateFile);
}

/** Removes a state file; QEMU or libvirt may have removed it already. */
export async function removeStateFile(path: string): Promise<void> {
  if (!(await exists(path))) return;
  await rm(path, { force: true });
  await fsyncDirectory(dirname(path));
}
