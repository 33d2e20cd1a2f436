import t from 'tap';
import { Slots } from './slots.ts';

const patient = new AbortController().signal;

void t.test('no more at once than there are slots, in the order in which they came', async (t) => {
  const slots = new Slots(3);
  const order: number[] = [];
  let now = 0;
  let most = 0;
  const work = async (number: number): Promise<void> => {
    order.push(number);
    most = Math.max(most, ++now);
    await new Promise(setImmediate);
    now--;
    if (number % 5 === 0) throw new Error('a failure gives its slot back, too');
  };
  const all = Array.from({ length: 20 }, async (_, number) => slots.use(patient, async () => work(number)));
  await Promise.allSettled(all);
  t.equal(most, 3);
  t.same(
    order,
    [...order].toSorted((one, other) => one - other),
  );
});

void t.test(
  'who gives up waiting, at whatever moment, takes no slot and nobody else out of the row',
  async (t) => {
    for (let ticks = 0; ticks < 12; ticks++) {
      const slots = new Slots(1);
      const turn = Promise.withResolvers<void>();
      const stop = new AbortController();
      const first = slots.use(patient, () => turn.promise);
      const second = slots.use(stop.signal, () => Promise.resolve('second'));
      const third = slots.use(patient, () => Promise.resolve('third'));
      turn.resolve();
      for (let tick = 0; tick < ticks; tick++) await Promise.resolve();
      stop.abort(new Error('enough'));
      await first;
      const outcome = await second.catch((error: unknown) => String(error));
      t.match(outcome, /^(second|Error: enough)$/);
      t.equal(await third, 'third');
      t.equal(await slots.use(patient, () => Promise.resolve('free')), 'free');
    }
  },
);
