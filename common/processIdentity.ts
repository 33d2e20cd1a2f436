import { readFileSync } from 'node:fs';
import { isErrno } from './errors.ts';

/** Names one process of one boot, so that a reused pid or a reboot is never taken for a living process. */
export interface ProcessIdentity {
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

/** The running process. */
export function thisProcess(): ProcessIdentity {
  const startTicks = processStartTicks(process.pid);
  if (startTicks === undefined) throw new Error('cannot read the start time of this process');
  return { pid: process.pid, startTicks, bootId: currentBootId() };
}

/** True while the process that is named is alive. */
export function isProcessAlive({ pid, startTicks, bootId }: ProcessIdentity): boolean {
  return bootId === currentBootId() && processStartTicks(pid) === startTicks;
}
