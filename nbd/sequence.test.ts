import t from 'tap';
import { Sequence } from './sequence.ts';

const noHoles = (block: number): number => block;

void t.test('a reader in order is read ahead of the further the longer it goes on', async (t) => {
  const sequence = new Sequence(4, noHoles);
  t.same(
    [0, 1, 2, 2, 3, 4, 5, 6].map((block) => sequence.note(block, block)),
    [0, 0, 2, 0, 3, 4, 4, 4],
  );
});

void t.test('requests that overtake each other are in order all the same', async (t) => {
  const sequence = new Sequence(16, noHoles);
  const noted = [0, 2, 1, 3, 6, 4, 5].map((block) => sequence.note(block, block));
  t.same(noted, [0, 0, 0, 2, 3, 0, 0]);
});

void t.test('a reader goes on behind a hole', async (t) => {
  const sequence = new Sequence(16, (block) => (block >= 3 && block < 100 ? 100 : block));
  for (const block of [0, 1, 2]) sequence.note(block, block);
  t.equal(sequence.note(100, 100), 3);
  t.equal(sequence.note(60, 60), 0);
});

void t.test('several readers are told apart, and jumps are nobody', async (t) => {
  const sequence = new Sequence(16, noHoles);
  const noted: number[] = [];
  for (let step = 0; step < 4; step += 1)
    for (const start of [0, 1000, 5000]) noted.push(sequence.note(start + step, start + step));
  t.same(noted, [0, 0, 0, 0, 0, 0, 2, 2, 2, 3, 3, 3]);
  for (const block of [9000, 20_000, 500, 70_000, 300]) t.equal(sequence.note(block, block), 0);
  t.equal(sequence.note(1004, 1004), 0, 'who is away for long is forgotten');
});
