import { readdir, readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { eventually } from './eventually.ts';

/** Every laboratory's directory begins with this; nothing else is ever removed. */
export const labPrefix = 'stillpoint-lab-';

/** Name of a file in the private `/run` that no other `/run` has. */
export function labMarker(root: string): string {
  return `${path.basename(root)}.marker`;
}

/**
 * Arguments with which `nsenter` runs a command in the mount namespace that a process holds. Its root is named
 * too: entering a namespace leaves a chroot, and commands would then see the file system around it.
 */
export function enterNamespace(holderPid: number): readonly string[] {
  return [`--mount=/proc/${holderPid}/ns/mnt`, `--root=/proc/${holderPid}/root`, '--'];
}

/**
 * Ids of all processes inside the mount namespace of the laboratory at `root`, or in one that was made from
 * it (QEMU gets its own from libvirt): their mount table names the private directories, and nobody else's
 * does.
 */
export async function labProcesses(root: string): Promise<readonly number[]> {
  const own = `/${path.basename(root)}/`;
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const inside = await Promise.all(
    pids.map(async (pid) => (await processFile(pid, 'mountinfo')).includes(own)),
  );
  return pids.filter((_, index) => inside[index]);
}

/**
 * Ends every process of a laboratory, whereupon the kernel takes its mounts and loop devices away, and
 * removes its directory. Safe to repeat, and to run twice at the same time.
 */
export async function sweepLab(root: string): Promise<void> {
  if (!path.basename(root).startsWith(labPrefix)) throw new Error(`not a laboratory: ${root}`);
  await eventually(
    async () => {
      const pids = await labProcesses(root);
      for (const pid of pids) kill(pid);
      return pids.length === 0;
    },
    { timeoutMs: 30_000 },
  );
  await rm(root, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
}

/** A file of `/proc/PID`; empty when the process is gone or a zombie. */
export async function processFile(pid: number, name: string): Promise<string> {
  try {
    return await readFile(`/proc/${pid}/${name}`, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH') || isErrno(error, 'EINVAL')) return '';
    throw error;
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if (!isErrno(error, 'ESRCH')) throw error;
  }
}
