import { getEventListeners } from 'node:events';
import t from 'tap';
import { collectGarbage } from '../test/collectGarbage.ts';
import { endOrAbort } from './endOrAbort.ts';

void t.test('it ends with the work, with its failure, and with the signal', async (t) => {
  const stop = new AbortController();
  await endOrAbort(Promise.resolve('done'), stop.signal);
  await t.rejects(endOrAbort(Promise.reject(new Error('it failed')), stop.signal), /it failed/);
  const endless = endOrAbort(new Promise(() => undefined), stop.signal);
  stop.abort();
  await endless;
  await endOrAbort(new Promise(() => undefined), stop.signal);
});

void t.test('nothing of work that has ended stays with a signal that lives on', async (t) => {
  const { signal } = new AbortController();
  const results: WeakRef<object>[] = [];
  for (let count = 0; count < 100; count += 1) {
    const result = {};
    results.push(new WeakRef(result));
    await endOrAbort(Promise.resolve(result), signal);
  }
  await collectGarbage();
  t.equal(getEventListeners(signal, 'abort').length, 0);
  // The last one may be on the stack still.
  t.ok(results.filter((result) => result.deref() !== undefined).length <= 1);
});
