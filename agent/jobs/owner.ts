import { readFileSync } from 'node:fs';
import { uptime } from 'node:os';
import { isErrno } from '../../common/errors.ts';

/** Names one process of one boot, so that a reused pid or a reboot is never taken for a living owner. */
export interface JobOwner {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat: clock ticks since boot. */
  readonly startTicks: number;
  readonly bootId: string;
}

/** Id of the present boot of this host. */
export function currentBootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

/** Start time of a process in clock ticks; `undefined` when there is no such process (or only its zombie). */
export function processStartTicks(pid: number): number | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return undefined;
    throw error;
  }
  // The command name may hold spaces and parentheses: the fixed fields start after the last one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
  return Number(fields[19]);
}

/** The running process as an owner. */
export function thisOwner(): JobOwner {
  const startTicks = processStartTicks(process.pid);
  if (startTicks === undefined) throw new Error('cannot read the start time of this process');
  return { pid: process.pid, startTicks, bootId: currentBootId() };
}

/** True while the process that the owner names is alive. */
export function isOwnerAlive(owner: JobOwner): boolean {
  return owner.bootId === currentBootId() && processStartTicks(owner.pid) === owner.startTicks;
}

/** True when both name the same process of the same boot. */
export function isSameOwner(a: JobOwner, b: JobOwner): boolean {
  return a.pid === b.pid && a.startTicks === b.startTicks && a.bootId === b.bootId;
}

/** Of field 22 of /proc/PID/stat, whatever the kernel's own clock does: proc(5), sysconf(_SC_CLK_TCK). */
const ticksPerSecond = 100;

/** When a living owner's process was started, in milliseconds since 1970, to within a second. */
export function ownerStartedMs({ startTicks }: JobOwner): number {
  const aliveSeconds = uptime() - startTicks / ticksPerSecond;
  return Math.round(Date.now() - aliveSeconds * 1000);
}
