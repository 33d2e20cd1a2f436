import t from 'tap';
import { Bandwidth, BandwidthLimit } from './bandwidth.ts';

/** How long something took, in milliseconds. */
async function durationMs(work: () => Promise<unknown>): Promise<number> {
  const startedMs = performance.now();
  await work();
  return performance.now() - startedMs;
}

void t.test('all who share a bandwidth get it together', async (t) => {
  const bandwidth = new Bandwidth(new BandwidthLimit(1_000_000));
  const tookMs = await durationMs(() => Promise.all(Array.from({ length: 6 }, () => bandwidth.take(20_000))));
  t.ok(tookMs >= 99, `the last one waited until 100 kB were paid for: ${tookMs} ms`);
});

void t.test('without a limit nobody waits, and a new limit holds for those who wait already', async (t) => {
  for (const limit of [0, 2 ** 40]) {
    const bandwidth = new Bandwidth();
    await bandwidth.take(2 ** 50);
    await bandwidth.take(2 ** 50);
    bandwidth.change(1);
    await bandwidth.take(2 ** 20);
    // For twelve days.
    const waiting = bandwidth.take(1);
    bandwidth.change(limit);
    await waiting;
    t.equal(bandwidth.bytesPerSecond, limit);
  }
});

void t.test(
  'each of those who have a limit in common has it for itself, and follows its changes',
  async (t) => {
    const limit = new BandwidthLimit(1);
    const [first, second] = [new Bandwidth(limit), new Bandwidth(limit)];
    await first.take(2 ** 20);
    await second.take(2 ** 20);
    // For twelve days each.
    const waiting = [first.take(1), second.take(1)];
    limit.change(2 ** 40);
    await Promise.all(waiting);
    t.equal(first.bytesPerSecond, 2 ** 40);
  },
);

void t.test('a signal ends the waiting with its reason', async (t) => {
  const bandwidth = new Bandwidth(new BandwidthLimit(1));
  await bandwidth.take(2 ** 20);
  const stop = new AbortController();
  const reason = new Error('enough');
  const waiting = bandwidth.take(1, stop.signal);
  stop.abort(reason);
  await t.rejects(waiting, reason);
});
