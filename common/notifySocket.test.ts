import t from 'tap';
import { NotifyReceiver } from '../test/lab/notifyReceiver.ts';
import { NotifySocket } from './notifySocket.ts';

void t.test('messages arrive whole and in their order, at a path and at an abstract name', async (t) => {
  for (const kind of ['path', 'abstract'] as const) {
    await using receiver = await NotifyReceiver.start(kind);
    using socket = await NotifySocket.open(receiver.name);
    await Promise.all([
      socket.send({ READY: '1', STATUS: 'größer = besser\nzweite Zeile' }),
      socket.send({ WATCHDOG: '1' }),
      socket.send({ STOPPING: '1' }),
    ]);
    await receiver.until(({ told }) => told.length === 3);
    t.same(
      receiver.told,
      [{ READY: '1', STATUS: 'größer = besser zweite Zeile' }, { WATCHDOG: '1' }, { STOPPING: '1' }],
      kind,
    );
  }
});

void t.test('more than a manager has room for arrives when it reads on', async (t) => {
  await using receiver = await NotifyReceiver.start();
  using socket = await NotifySocket.open(receiver.name);
  const numbers = Array.from({ length: 500 }, (_, index) => String(index));
  // The queue of a datagram socket takes 10 messages, or some hundreds.
  await Promise.all(numbers.map((STATUS) => socket.send({ STATUS })));
  await receiver.until(({ told }) => told.length === numbers.length);
  t.same(
    receiver.told.map(({ STATUS }) => STATUS),
    numbers,
  );
});

void t.test(
  'what is no address of a unix socket is refused, and one that nobody listens to fails',
  async (t) => {
    for (const name of ['', 'relative', '@', 'vsock:2:1234', `/${'x'.repeat(108)}`])
      await t.rejects(NotifySocket.open(name), /NOTIFY_SOCKET/, name);
    using socket = await NotifySocket.open('/proc/nobody/listens');
    await t.rejects(socket.send({ READY: '1' }), { code: 'ENOENT' });
  },
);
