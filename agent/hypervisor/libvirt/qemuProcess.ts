import { readdir, readFile } from 'node:fs/promises';
import { isErrno } from '../../../common/errors.ts';

/**
 * The user that the QEMU of a machine runs as, found by the UUID on its command line: what libvirt's configuration
 * and the machine's own `<seclabel>` made of it. `undefined` when the machine has no QEMU on this host.
 */
export async function findQemuUser(
  uuid: string,
): Promise<{ readonly uid: number; readonly gid: number } | undefined> {
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const args = (await readProcess(entry, 'cmdline'))?.split('\0') ?? [];
    if (args[args.indexOf('-uuid') + 1] !== uuid || !args.includes('-uuid')) continue;
    const status = (await readProcess(entry, 'status')) ?? '';
    const uid = /^Uid:\s*\d+\s+(\d+)/m.exec(status)?.[1];
    const gid = /^Gid:\s*\d+\s+(\d+)/m.exec(status)?.[1];
    if (uid !== undefined && gid !== undefined) return { uid: Number(uid), gid: Number(gid) };
  }
  return undefined;
}

/** Processes end while we look at them; that is not an error. */
async function readProcess(pid: string, name: string): Promise<string | undefined> {
  try {
    return await readFile(`/proc/${pid}/${name}`, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return undefined;
    throw error;
  }
}
