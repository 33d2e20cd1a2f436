import { uptime } from 'node:os';
import type { ProcessIdentity } from '../../common/processIdentity.ts';

export {
  currentBootId,
  isProcessAlive as isOwnerAlive,
  processStartTicks,
  thisProcess as thisOwner,
} from '../../common/processIdentity.ts';

/** The process that works on a job. */
export type JobOwner = ProcessIdentity;

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
