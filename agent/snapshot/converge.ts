import { stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrno } from '../../common/errors.ts';
import { freeBytes } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import type { LivePlan } from './livePlan.ts';
import { reserveBytes } from './scratchSpace.ts';

const watchMs = 200;
/** QEMU's own limit for the pause of a migration (`downtime-limit`), which libvirt leaves as it was set last. */
const usualPauseMs = 300;

export interface ConvergeOptions {
  /** How long memory may be written before it counts as not converging. */
  readonly convergeMs: number;
  readonly whenNotConverging: 'pause-longer' | 'disk' | 'fail';
  /** How long the vCPUs may stop, when they may stop longer. */
  readonly longestPauseMs: number;
  /** Called before the vCPUs are stopped for good until all memory is written; libvirt lets them run on. */
  onHeld(): void;
}

/**
 * Watches the memory of a live snapshot while it is written, until `signal` is aborted. A guest that changes its
 * memory faster than it is written would never end: after a time, or when the file has become too large, the vCPUs
 * are allowed to stop for longer, then stopped; or it is given up.
 * @throws SnapshotError MEMORY_NOT_CONVERGING when the snapshot must be ended
 */
export async function watchConvergence(
  hypervisor: Pick<Hypervisor, 'job' | 'setMaxDowntime' | 'suspend'>,
  plan: Pick<LivePlan, 'machine' | 'stateFile' | 'memoryBytes' | 'convergeBytes'>,
  options: ConvergeOptions,
  signal: AbortSignal,
): Promise<void> {
  const { uuid } = plan.machine;
  const startedMs = performance.now();
  const reserve = await reserveBytes(plan.stateFile);
  let allowedMs: number | undefined;
  let stopped = false;
  try {
    for (;;) {
      await sleep(watchMs, undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return;
      const sizeBytes = await sizeOf(plan.stateFile);
      const elapsedMs = performance.now() - startedMs;
      if (sizeBytes > plan.memoryBytes || (await freeBytes(plan.stateFile)) < reserve)
        throw notConverging(plan, sizeBytes, elapsedMs);
      if (sizeBytes <= plan.convergeBytes && elapsedMs <= options.convergeMs) continue;
      if (options.whenNotConverging !== 'pause-longer') throw notConverging(plan, sizeBytes, elapsedMs);
      if (allowedMs === undefined) {
        allowedMs = performance.now();
        await unlessEnded(() => hypervisor.setMaxDowntime(uuid, options.longestPauseMs));
      } else if (!stopped && performance.now() - allowedMs > options.longestPauseMs) {
        stopped = true;
        await unlessEnded(async () => {
          // It may have come to its end by itself.
          if ((await hypervisor.job(uuid)).kind === 'none') return;
          options.onHeld();
          await hypervisor.suspend(uuid);
        });
      }
    }
  } finally {
    if (allowedMs !== undefined) await unlessEnded(() => hypervisor.setMaxDowntime(uuid, usualPauseMs));
  }
}

/** The machine or libvirtd may have gone meanwhile: whoever waits for the snapshot hears of it. */
async function unlessEnded(call: () => Promise<void>): Promise<void> {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error;
  }
}

async function sizeOf(file: string): Promise<number> {
  try {
    return (await stat(file)).size;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 0;
    throw error;
  }
}

function notConverging(plan: Pick<LivePlan, 'machine'>, sizeBytes: number, elapsedMs: number): SnapshotError {
  const seconds = Math.round(elapsedMs / 1000);
  return new SnapshotError(
    'MEMORY_NOT_CONVERGING',
    `${plan.machine.name} changes its memory faster than it is written: ${formatBytes(sizeBytes)} after ${seconds} s`,
    {
      hint: 'the machine runs on; see live: in the policy (memoryFactor, convergeSeconds, whenNotConverging), or --mode save',
      retryable: true,
    },
  );
}
