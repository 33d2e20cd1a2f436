import t from 'tap';
import { RateMeter } from './rate.ts';

void t.test('a steady report gives its rate and the time that is left', async (t) => {
  const meter = new RateMeter();
  t.same(meter.measure({ step: 'merge', doneBytes: 0, totalBytes: 1000 }, 0), {}, 'one report says nothing');
  t.same(meter.measure({ step: 'merge', doneBytes: 100, totalBytes: 1000 }, 1000), {
    bytesPerSecond: 100,
    etaSeconds: 9,
  });
  t.same(meter.measure({ step: 'merge', doneBytes: 200, totalBytes: 1000 }, 2000), {
    bytesPerSecond: 100,
    etaSeconds: 8,
  });
});

void t.test('another step or another file begins anew', async (t) => {
  const meter = new RateMeter();
  meter.measure({ step: 'merge', doneBytes: 0, totalBytes: 1000 }, 0);
  meter.measure({ step: 'merge', doneBytes: 500, totalBytes: 1000 }, 1000);
  t.same(meter.measure({ step: 'retain', detail: 'vda', doneBytes: 600, totalBytes: 1000 }, 2000), {});
  t.same(meter.measure({ step: 'retain', detail: 'vdb', doneBytes: 700, totalBytes: 1000 }, 3000), {});
});

void t.test(
  'reports too close to each other do not shake the rate, and a stalled one gives no end',
  async (t) => {
    const meter = new RateMeter();
    meter.measure({ step: 'merge', doneBytes: 0, totalBytes: 1000 }, 0);
    t.same(meter.measure({ step: 'merge', doneBytes: 900, totalBytes: 1000 }, 10), {});
    const stalled = new RateMeter();
    stalled.measure({ step: 'merge', doneBytes: 5, totalBytes: 1000 }, 0);
    t.same(stalled.measure({ step: 'merge', doneBytes: 5, totalBytes: 1000 }, 5000), { bytesPerSecond: 0 });
  },
);
