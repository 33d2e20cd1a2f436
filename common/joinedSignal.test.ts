import { getEventListeners } from 'node:events';
import t from 'tap';
import { JoinedSignal } from './joinedSignal.ts';

void t.test('it is aborted with the first of its sources, for its reason', async (t) => {
  const [one, other] = [new AbortController(), new AbortController()];
  using joined = new JoinedSignal([one.signal, other.signal]);
  t.equal(joined.signal.aborted, false);
  other.abort('because');
  one.abort('later');
  t.equal(joined.signal.reason, 'because');
  using late = new JoinedSignal([new AbortController().signal, one.signal]);
  t.equal(late.signal.reason, 'later', 'also with one that was aborted before');
});

void t.test('when it is over its sources know nothing of it', async (t) => {
  const source = new AbortController();
  const joined = new JoinedSignal([source.signal]);
  t.equal(getEventListeners(source.signal, 'abort').length, 1);
  joined[Symbol.dispose]();
  t.equal(getEventListeners(source.signal, 'abort').length, 0);
  source.abort();
  t.equal(joined.signal.aborted, false);
});
