import t from 'tap';
import { eventually } from '../../../test/lab/eventually.ts';
import { HypervisorError } from '../errors.ts';
import type { ChannelPool } from './pool.ts';
import { keepConnected } from './readiness.ts';

/** A pool whose children are lost when the test says so. */
class LosingPool {
  connects = 0;
  /** libvirt is away. */
  isAway = false;
  #emptied = Promise.withResolvers<void>();

  get emptied(): Promise<void> {
    return this.#emptied.promise;
  }

  readonly ask: ChannelPool['ask'] = async () => {
    this.connects += 1;
    if (this.isAway) throw new HypervisorError('HYPERVISOR_UNREACHABLE', 'away', { retryable: true });
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what connecting gives
    return undefined as never;
  };

  lose(): void {
    this.#emptied.resolve();
    this.#emptied = Promise.withResolvers();
  }
}

void t.test(
  'a child is connected at once, and another one when it was lost, also while libvirt is away',
  async (t) => {
    const pool = new LosingPool();
    const stop = new AbortController();
    const kept = keepConnected(pool, 1000, stop.signal);
    await eventually(() => pool.connects === 1);
    pool.isAway = true;
    pool.lose();
    await eventually(() => pool.connects === 2);
    pool.isAway = false;
    pool.lose();
    await eventually(() => pool.connects === 3);
    stop.abort();
    await kept;
    pool.lose();
    t.equal(pool.connects, 3, 'and none any more after the end');
  },
);

void t.test('an end does not wait for a child to be lost', async (t) => {
  const stop = new AbortController();
  const pool = new LosingPool();
  const kept = keepConnected(pool, 1000, stop.signal);
  await eventually(() => pool.connects === 1);
  stop.abort();
  await kept;
  t.equal(pool.connects, 1);
});
