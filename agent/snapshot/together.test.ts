import t from 'tap';
import { Together } from './together.ts';

void t.test('one that waits for its turn to read can give up, and takes nobody else the turn', async (t) => {
  const together = new Together({ members: ['a', 'b', 'c'], pauseMaxMs: 1, readersMax: 1 });
  const first = Promise.withResolvers<void>();
  const never = new AbortController().signal;
  const reading = together.reading(never, () => first.promise);
  const full = new AbortController();
  const second = together.reading(full.signal, () => Promise.reject(new Error('it must not read')));
  const third = together.reading(never, () => Promise.resolve('read'));
  full.abort(new Error('the scratch space is full'));
  await t.rejects(second, { message: 'the scratch space is full' }, 'while another one reads');
  first.resolve();
  await reading;
  t.equal(await third, 'read');
});
