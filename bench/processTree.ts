import { readdir, readFile } from 'node:fs/promises';
import { isErrno } from '../common/errors.ts';

/** Proportional set size of a process and all below it, in bytes, without QEMU and its tools. */
export async function treePssBytes(rootPid: number): Promise<number> {
  const parents = new Map<number, number>();
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const stat = await readGone(`/proc/${name}/stat`);
    if (stat === undefined) continue;
    parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
  }
  let total = 0;
  for (const pid of parents.keys()) if (isBelow(pid, rootPid, parents)) total += await pssBytes(pid);
  return total;
}

function isBelow(pid: number, rootPid: number, parents: ReadonlyMap<number, number>): boolean {
  for (let at: number | undefined = pid; at !== undefined && at > 1; at = parents.get(at))
    if (at === rootPid) return true;
  return false;
}

async function pssBytes(pid: number): Promise<number> {
  const command = (await readGone(`/proc/${pid}/comm`)) ?? '';
  if (command.startsWith('qemu')) return 0;
  const rollup = await readGone(`/proc/${pid}/smaps_rollup`);
  return Number(/^Pss:\s+(\d+) kB/m.exec(rollup ?? '')?.[1] ?? 0) * 1024;
}

async function readGone(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return undefined;
    throw error;
  }
}
