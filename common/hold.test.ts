import t from 'tap';
import { Bandwidth } from './bandwidth.ts';
import { Hold } from './hold.ts';
import { throttleOf } from './throttle.ts';

/** What has become of a promise by now. */
async function stateOf(work: Promise<void>): Promise<'waits' | 'passed' | 'rejected'> {
  const settled = work.then(
    () => 'passed' as const,
    () => 'rejected' as const,
  );
  return Promise.race([settled, new Promise<'waits'>((resolve) => setImmediate(resolve, 'waits'))]);
}

void t.test('who takes something from a closed hold waits until it is opened, each time', async (t) => {
  const hold = new Hold();
  t.equal(await stateOf(hold.take(1)), 'passed');
  hold.close();
  hold.close();
  const first = hold.take(1);
  t.equal(await stateOf(first), 'waits');
  hold.open();
  hold.close();
  t.equal(await stateOf(first), 'waits', 'it was closed again before anybody passed');
  hold.open();
  t.equal(await stateOf(first), 'passed');
});

void t.test('a signal ends the waiting with its reason, and nobody else’s', async (t) => {
  const hold = new Hold();
  hold.close();
  const reason = new Error('cancelled');
  const stop = new AbortController();
  const waiting = hold.take(1, stop.signal);
  const other = hold.take(1);
  stop.abort(reason);
  await t.rejects(waiting, reason);
  await t.rejects(hold.take(1, stop.signal), reason, 'also of one that comes later');
  t.equal(await stateOf(other), 'waits');
  hold.open();
});

void t.test('a hold tells that it has held work back until some time after it was opened', (t) => {
  const hold = new Hold();
  t.equal(hold.heldWithin(1e9), false, 'nobody was ever held');
  hold.close();
  t.equal(hold.heldWithin(0), true);
  hold.open();
  t.equal(hold.heldWithin(1e9), true);
  t.equal(hold.heldWithin(0), false);
  t.end();
});

void t.test('several throttles are one, and those that are not there hold nobody back', async (t) => {
  const [one, other] = [new Hold(), new Hold()];
  const all = throttleOf(one, undefined, new Bandwidth(), other);
  other.close();
  const waiting = all.take(1);
  t.equal(await stateOf(waiting), 'waits');
  other.open();
  t.equal(await stateOf(waiting), 'passed');
});
