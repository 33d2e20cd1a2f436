import t from 'tap';
import { RecordedTerminal } from './fixture.ts';
import { describeProgress, ProgressView, RateMeter } from './progress.ts';

const at = (doneBytes: number, detail?: string) =>
  ({ jobId: 'j', state: 'merging', step: 'merge', detail, doneBytes, totalBytes: 10_000_000 }) as const;

void t.test('rate and remaining time come from what was done in this stage', async (t) => {
  const meter = new RateMeter();
  t.equal(meter.measure(at(1_000_000), 0).bytesPerSecond, undefined);
  t.equal(meter.measure(at(1_500_000), 500).bytesPerSecond, undefined, 'too early');
  t.match(meter.measure(at(3_000_000), 2000), { bytesPerSecond: 1_000_000, etaSeconds: 7 });
  t.equal(meter.measure(at(0, 'next file'), 3000).bytesPerSecond, undefined, 'another stage starts anew');
  t.equal(
    describeProgress({ ...at(1_048_576), bytesPerSecond: 1024, etaSeconds: 9 }),
    'merge, 1 MiB of 9.5 MiB, 1 KiB/s, 9.0 s left',
  );
});

void t.test('without a terminal each change of state is one line', async (t) => {
  const recorded = new RecordedTerminal();
  const view = new ProgressView(recorded.terminal);
  const listener = view.listener();
  view.name('j', 'web-1');
  listener.state?.('j', 'merging');
  listener.progress?.(at(5));
  listener.state?.('j', 'merging');
  listener.state?.('j', 'merged');
  listener.state?.('other', 'merged');
  listener.warning?.('j', 'look');
  t.equal(recorded.stderr, 'web-1: merging\nweb-1: merged\nwarning: web-1: look\n');
});

void t.test('on a terminal each machine has one line, which goes when its job ends', async (t) => {
  const recorded = new RecordedTerminal({ isTTY: true });
  const view = new ProgressView(recorded.terminal);
  const listener = view.listener();
  view.name('j', 'web-1\u001b[2J');
  listener.state?.('j', 'merging');
  t.match(recorded.stderr, 'merging');
  t.notMatch(recorded.stderr, '\u001b[2J', 'the name cannot clear the terminal');
  recorded.stderr = '';
  view.done('j');
  t.equal(recorded.stderr, '\u001b[1A\r\u001b[J');
});
