import { endOrAbort } from '../../../common/endOrAbort.ts';
import { pause } from '../../../common/wake.ts';
import { HypervisorError } from '../errors.ts';
import type { ChannelPool } from './pool.ts';

const againFirstMs = 1_000;
const againLastMs = 60_000;

/**
 * Has a child of a pool started and connected, again whenever none is left, until `signal`: whoever asks something then
 * waits for libvirt alone. Never rejects: while libvirt cannot be reached, that is told to whoever asks.
 * @param pool whose last child stays; see `keepLast`
 */
export async function keepConnected(
  pool: Pick<ChannelPool, 'ask' | 'emptied'>,
  deadlineMs: number,
  signal: AbortSignal,
): Promise<void> {
  for (let waitMs = againFirstMs; !signal.aborted; ) {
    const { emptied } = pool;
    if (await connects(pool, deadlineMs)) waitMs = againFirstMs;
    // A child that could not connect stays all the same, and does so with the next question.
    await endOrAbort(emptied, signal);
    await pause(waitMs, signal);
    waitMs = Math.min(2 * waitMs, againLastMs);
  }
}

async function connects(pool: Pick<ChannelPool, 'ask'>, deadlineMs: number): Promise<boolean> {
  try {
    await pool.ask('connect', [], deadlineMs);
    return true;
  } catch (error) {
    if (error instanceof HypervisorError) return false;
    throw error;
  }
}
