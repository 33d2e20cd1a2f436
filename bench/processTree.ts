import { readdir, readFile } from 'node:fs/promises';
import { isErrno } from '../common/errors.ts';

/** `USER_HZ`, in which /proc counts: 100 on every architecture that Node.js runs on. */
const tickMs = 10;

/** A process of a tree, without QEMU and its tools. */
export interface TreeMember {
  readonly pid: number;
  /** The file that it runs, or its name. */
  readonly what: string;
  /** Proportional set size. */
  readonly pssBytes: number;
  /** Processor time, its own, and that of its children that have ended. */
  readonly ownMs: number;
  readonly goneChildrenMs: number;
}

interface Stat {
  readonly parent: number;
  readonly ownMs: number;
  readonly goneChildrenMs: number;
}

/** A process and all below it, without QEMU and its tools. */
export async function processTree(rootPid: number): Promise<readonly TreeMember[]> {
  const stats = await allStats();
  const members: TreeMember[] = [];
  for (const [pid, { ownMs, goneChildrenMs }] of stats) {
    if (!isBelow(pid, rootPid, stats)) continue;
    const command = (await readGone(`/proc/${pid}/comm`)) ?? '';
    if (command.startsWith('qemu')) continue;
    members.push({
      pid,
      what: await whatRuns(pid, command),
      pssBytes: await pssBytes(pid),
      ownMs,
      goneChildrenMs,
    });
  }
  return members;
}

/** Proportional set size of a process and all below it, in bytes, without QEMU and its tools. */
export async function treePssBytes(rootPid: number): Promise<number> {
  return (await processTree(rootPid)).reduce((total, { pssBytes: bytes }) => total + bytes, 0);
}

async function allStats(): Promise<ReadonlyMap<number, Stat>> {
  const stats = new Map<number, Stat>();
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const text = await readGone(`/proc/${name}/stat`);
    if (text === undefined) continue;
    // proc(5): the fields from the third on; the second, a name, may have anything in it.
    const fields = text
      .slice(text.lastIndexOf(')') + 2)
      .split(' ')
      .map(Number);
    stats.set(Number(name), {
      parent: fields[1] ?? 0,
      ownMs: sum(fields.slice(11, 13)) * tickMs,
      goneChildrenMs: sum(fields.slice(13, 15)) * tickMs,
    });
  }
  return stats;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function isBelow(pid: number, rootPid: number, stats: ReadonlyMap<number, Stat>): boolean {
  for (let at: number | undefined = pid; at !== undefined && at > 1; at = stats.get(at)?.parent)
    if (at === rootPid) return true;
  return false;
}

async function whatRuns(pid: number, command: string): Promise<string> {
  const [, file] = ((await readGone(`/proc/${pid}/cmdline`)) ?? '').split('\0');
  return file?.split('/').at(-1) ?? command.trim();
}

async function pssBytes(pid: number): Promise<number> {
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
