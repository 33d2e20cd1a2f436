import t from 'tap';
import { EventLog } from './eventLog.ts';

void t.test('a cursor goes on exactly behind what was seen', async (t) => {
  const log = new EventLog<string>(10);
  const begin = log.end;
  for (const event of ['a', 'b', 'c']) log.append(event);
  const events = log.after(begin);
  t.same(
    events.map(({ event }) => event),
    ['a', 'b', 'c'],
  );
  const [first] = events;
  t.same(
    log.after(first?.cursor ?? '').map(({ event }) => event),
    ['b', 'c'],
  );
  t.same(log.after(log.end), []);
  t.equal(events.at(-1)?.cursor, log.end);
});

void t.test('a cursor that is too old is told, and nothing is skipped in silence', async (t) => {
  const log = new EventLog<number>(3);
  const begin = log.end;
  for (const event of [1, 2, 3]) log.append(event);
  t.equal(log.after(begin).length, 3, 'all are there yet');
  log.append(4);
  t.throws(() => log.after(begin), { code: 'CURSOR_EXPIRED' });
});

void t.test('after a gap every cursor from before has expired, also one with the same number', async (t) => {
  const log = new EventLog<number>(3);
  const begin = log.end;
  log.cut();
  t.throws(() => log.after(begin), { code: 'CURSOR_EXPIRED' });
  log.append(1);
  t.throws(() => log.after(begin), { code: 'CURSOR_EXPIRED' });
  const other = new EventLog<number>(3);
  t.throws(() => other.after(log.end), { code: 'CURSOR_EXPIRED' }, 'as after a restart of the service');
});

void t.test('what is no cursor is refused as such', async (t) => {
  const log = new EventLog<number>(3);
  for (const wrong of ['', 'e.1', 'j.0.0.0', `${log.end}9999999999999999`, `${log.end} `])
    t.throws(() => log.after(wrong), { code: 'REQUEST_INVALID' }, wrong);
  t.throws(() => log.after(log.end.replace(/0$/, '7')), { code: 'CURSOR_EXPIRED' }, 'from the future');
});
