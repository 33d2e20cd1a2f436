import t from 'tap';
import { ChunkWindow, type WindowChunk } from './chunkWindow.ts';

function there(window: ChunkWindow, number: number): Promise<void> {
  const chunk = window.add(number, {});
  chunk?.buffer.fill(number);
  return window.settle(number, Promise.resolve());
}

function held(window: ChunkWindow, number: number): WindowChunk {
  const chunk = window.hold(number);
  if (chunk === null) throw new Error(`chunk ${number} is not there`);
  return chunk;
}

void t.test('a chunk that somebody looks at keeps its buffer, the others make room', async (t) => {
  const window = new ChunkWindow(10, 2);
  await there(window, 1);
  await there(window, 2);
  const first = held(window, 1);
  await there(window, 3);
  t.same([first.buffer[0], window.has(1), window.has(2), window.has(3)], [1, true, false, true]);
  const third = held(window, 3);
  t.equal(window.add(4, {}), null, 'there is no room while all of it is in use');
  const change = window.change(undefined);
  window.release(third);
  await change;
  t.ok(window.add(4, {}));
  t.equal(first.buffer[0], 1);
  t.equal(window.buffers, 2, 'and never more memory');
});

void t.test('a chunk on its way keeps its buffer, and one that failed is not there', async (t) => {
  const window = new ChunkWindow(10, 1);
  const reading = Promise.withResolvers<void>();
  window.add(1, {});
  const settled = window.settle(1, reading.promise);
  t.equal(window.add(2, {}), null);
  const waiting = held(window, 1).ready.catch((error: unknown) => error);
  const lost = new Error('lost');
  reading.reject(lost);
  t.equal(await waiting, lost);
  await settled;
  t.notOk(window.has(1));
  t.ok(window.add(1, {}), 'its room is free');
});
