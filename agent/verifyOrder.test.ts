import t from 'tap';
import { dueForReading } from './verifyOrder.ts';

const now = new Date('2026-11-22T12:00:00.000Z');
const dayMs = 24 * 3600 * 1000;

function entry(directory: string, pointInTime: string, readAt: string | null) {
  const dataVerified = readAt === null ? null : { at: `${readAt}T00:00:00.000Z`, ok: true };
  return { storage: 's', directory, pointInTime: `${pointInTime}T00:00:00.000Z`, dataVerified };
}

const entries = [
  entry('read long ago', '2026-11-01', '2026-11-02'),
  entry('never read, newer', '2026-11-20', null),
  entry('read yesterday', '2026-10-01', '2026-11-21'),
  entry('never read, older', '2026-11-10', null),
];

function names(olderThanMs: number, of = entries): readonly string[] {
  return dueForReading(of, { now, olderThanMs }).map(({ directory }) => directory);
}

void t.test('what was never read comes first, then what was read the longest ago', (t) => {
  const order = ['never read, older', 'never read, newer', 'read long ago', 'read yesterday'];
  t.same(names(0), order);
  t.same(names(0, entries.toReversed()), order, 'in whichever order they are listed');
  t.end();
});

void t.test('what was read lately is left out; what was never read is not', (t) => {
  t.same(names(10 * dayMs), ['never read, older', 'never read, newer', 'read long ago']);
  t.same(names(100 * dayMs), ['never read, older', 'never read, newer']);
  t.end();
});

void t.test('a reading in the future is no reason not to read', (t) => {
  t.same(names(dayMs, [entry('by a wrong clock', '2026-11-01', '2036-01-01')]), ['by a wrong clock']);
  t.end();
});

void t.test('what was read in this run comes last in the next one', (t) => {
  let left = entries;
  const read: string[] = [];
  for (let run = 0; run < entries.length; run++) {
    const [first] = dueForReading(left, { now, olderThanMs: 0 });
    if (first === undefined) throw new Error('nothing is due');
    read.push(first.directory);
    const dataVerified = { at: `2026-11-22T11:0${run}:00.000Z`, ok: true };
    left = left.map((one) => (one === first ? { ...one, dataVerified } : one));
  }
  t.same(new Set(read).size, entries.length);
  t.end();
});
