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
