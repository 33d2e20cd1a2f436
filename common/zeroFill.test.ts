import t from 'tap';
import { zeroFill } from './zeroFill.ts';

for (const [name, memory] of [
  ['shared', new SharedArrayBuffer(200_000)],
  ['ordinary', new ArrayBuffer(200_000)],
] as const)
  void t.test(`${name} memory: all of the target, and nothing beside it`, (t) => {
    for (const lengthBytes of [0, 1, 65_535, 65_536, 65_537, 150_000]) {
      const all = Buffer.from(memory).fill(7);
      zeroFill(all.subarray(10, 10 + lengthBytes));
      const expected = Buffer.alloc(200_000, 7).fill(0, 10, 10 + lengthBytes);
      t.ok(all.equals(expected), `${lengthBytes} bytes`);
    }
    t.end();
  });
