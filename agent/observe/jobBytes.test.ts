import t from 'tap';
import { JobBytes } from './jobBytes.ts';

void t.test('bytes count once, however often they are reported, and by step', (t) => {
  const bytes = new JobBytes();
  const report = (jobId: string, step: string, doneBytes?: number, detail?: string): void =>
    bytes.listener.progress?.({ jobId, state: 'retaining', step, doneBytes, detail });
  for (const done of [10, 10, 25]) report('a', 'retain', done);
  report('b', 'retain', 100);
  report('a', 'retain', 5, 'vdb');
  report('a', 'retain');
  report('a', 'merge', 7);
  report('a', 'merge', 3);
  t.same(
    [...bytes.totals],
    [
      ['retain', 130],
      ['merge', 10],
    ],
    'a stage that begins again counts from zero',
  );
  t.end();
});
