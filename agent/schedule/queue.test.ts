import * as fc from 'fast-check';
import t from 'tap';
import { ClockWatch } from './clockWatch.ts';
import { DueQueue } from './queue.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);

void t.test('whatever is put in, moved and taken out, the earliest comes first', (t) => {
  const anyStep = fc.oneof(
    fc.record({
      kind: fc.constant('set' as const),
      id: fc.integer({ min: 0, max: 40 }).map(String),
      atMs: fc.integer({ min: 0, max: 100 }),
    }),
    fc.record({ kind: fc.constant('delete' as const), id: fc.integer({ min: 0, max: 40 }).map(String) }),
    fc.record({ kind: fc.constant('take' as const), nowMs: fc.integer({ min: 0, max: 30 }) }),
  );
  const property = fc.property(fc.array(anyStep, { minLength: 50, maxLength: 200, size: 'max' }), (steps) => {
    const queue = new DueQueue();
    const model = new Map<string, number>();
    return steps.every((step) => {
      if (step.kind === 'set') {
        queue.set(step.id, step.atMs);
        model.set(step.id, step.atMs);
      } else if (step.kind === 'delete') {
        queue.delete(step.id);
        model.delete(step.id);
      } else {
        const taken = queue.takeDue(step.nowMs);
        const expected = [...model].filter(([, atMs]) => atMs <= step.nowMs);
        const times = taken.map((id) => model.get(id) ?? Number.NaN);
        for (const [id] of expected) model.delete(id);
        if (
          taken.toSorted().join() !==
          expected
            .map(([id]) => id)
            .toSorted()
            .join()
        )
          return false;
        if (times.some((time, index) => time < (times[index - 1] ?? 0))) return false;
      }
      const nextMs = model.size === 0 ? null : Math.min(...model.values());
      return queue.size === model.size && queue.nextMs() === nextMs;
    });
  });
  fc.assert(property, { seed, numRuns: 500 });
  t.end();
});

void t.test('it tells how long to sleep, and never sleeps through a clock that is set', (t) => {
  const queue = new DueQueue();
  t.equal(queue.sleepMs(0), 60_000);
  t.equal(queue.nextMs(), null);
  queue.set('a', 5000);
  t.equal(queue.sleepMs(1000), 4000);
  t.equal(queue.sleepMs(9000), 0);
  queue.set('a', 500_000);
  t.equal(queue.sleepMs(1000), 60_000);
  t.same(queue.takeDue(499_999), []);
  t.same(queue.takeDue(500_000), ['a']);
  t.equal(queue.size, 0);
  t.end();
});

void t.test('a clock that is set is noticed, one that is slewed is not', (t) => {
  const watch = new ClockWatch({ wallMs: 1_000_000, monotonicMs: 50 });
  t.equal(watch.look({ wallMs: 1_060_030, monotonicMs: 60_050 }), 0);
  t.equal(watch.look({ wallMs: 4_720_030, monotonicMs: 120_050 }), 3_600_000);
  t.equal(watch.look({ wallMs: 4_780_030, monotonicMs: 180_050 }), 0);
  t.equal(watch.look({ wallMs: 1_000_030, monotonicMs: 240_050 }), -3_840_000);
  t.end();
});
