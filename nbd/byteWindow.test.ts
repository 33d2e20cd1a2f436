import t from 'tap';
import { ByteWindow } from './byteWindow.ts';

void t.test('who waits gets in in turn, as soon as there is room', async (t) => {
  const window = new ByteWindow(10);
  t.ok(window.tryTake(6));
  const order: string[] = [];
  const large = window.take(8).then(() => order.push('large'));
  t.notOk(window.tryTake(1), 'nobody overtakes');
  const small = window.take(2).then(() => order.push('small'));
  window.give(6);
  await Promise.all([large, small]);
  t.same(order, ['large', 'small']);
  t.equal(window.takenBytes, 10);
});

void t.test('what is larger than the window gets in alone', async (t) => {
  const window = new ByteWindow(10);
  t.ok(window.tryTake(1));
  const large = window.take(50);
  t.equal(window.takenBytes, 1, 'not yet');
  window.give(1);
  t.ok(await large);
  t.equal(window.takenBytes, 50);
  t.notOk(window.tryTake(1));
  window.give(50);
  t.ok(window.tryTake(10));
});

void t.test('a window that is closed lets nobody in, and nobody waiting', async (t) => {
  const window = new ByteWindow(10);
  t.ok(window.tryTake(10));
  const waiting = window.take(1);
  window.close();
  t.notOk(await waiting);
  window.give(10);
  t.notOk(window.tryTake(1));
  t.notOk(await window.take(1));
});
