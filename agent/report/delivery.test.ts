import { copyFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { promisify } from 'node:util';

import { credentials, Server, ServerCredentials, status } from '@grpc/grpc-js';
import t, { type Test } from 'tap';

import type { DeliverCall } from '../../controller/receiver.ts';
import { type Gap, ReportStore } from '../../controller/reportStore.ts';
import { openStub, type Stub } from '../../controller/stub.ts';
import { type DeliverRequest, ReportServiceService } from '../../proto/generated/stillpoint/v1/report.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { alert, disagreement, machine, outboxFor, receivedIn } from '../../test/sim/reports.ts';
import { createLogger } from '../../common/log.ts';
import { Backoff } from './backoff.ts';
import { OutboxKeeper } from './outboxKeeper.ts';
import { Sender } from './sender.ts';

const hostId = '01a1fa1b-a048-702f-a832-3f1deebf16d6';
const quick = { firstMs: 5, maxMs: 20, random: () => 0.5 };

/** A host that sends to an address until the test ends; `said` is its log. */
async function hostFor(
  test: Test,
  address: string,
  settings: { readonly path?: string; readonly maxBytes?: number; readonly now?: () => number } = {},
) {
  const { path = (await outboxFor(test)).path, maxBytes = 2 ** 30, now } = settings;
  const said: string[] = [];
  const destination = new Writable({
    write: (line: Buffer, _, done) => {
      said.push(String(line));
      done();
    },
  });
  const log = createLogger({ destination, level: 'info' });
  let sender: Sender | undefined;
  const keeper = new OutboxKeeper(path, { maxBytes, now }, { log, onNoted: () => sender?.wake() });
  const attempts: number[] = [];
  const channel = {
    address,
    credentials: () => {
      attempts.push(performance.now());
      return credentials.createInsecure();
    },
  };
  const host = { id: hostId, name: 'sim', version: '0' };
  sender = new Sender({ keeper, channel, host, log, backoff: new Backoff(quick) });
  const stop = new AbortController();
  const sending = sender.run(stop.signal);
  const end = async (): Promise<void> => {
    stop.abort();
    await sending;
    keeper[Symbol.dispose]();
  };
  test.teardown(end);
  const delivered = () => eventually(() => keeper.outbox.backlog.reports === 0);
  return { path, keeper, said, attempts, end, delivered };
}

/** A receiver of its own kind, on loopback. */
async function serve(test: Test, deliver: (call: DeliverCall) => void): Promise<string> {
  const server = new Server();
  server.addService(ReportServiceService, { deliver });
  test.teardown(() => server.forceShutdown());
  const port = await promisify(server.bindAsync.bind(server))(
    '127.0.0.1:0',
    ServerCredentials.createInsecure(),
  );
  return `127.0.0.1:${port}`;
}

/** The reference receiver; `restart` brings it back at the same address, also after its files were changed. */
async function receiverFor(test: Test) {
  const directory = test.testdir({});
  const gaps: Gap[] = [];
  let stub: Stub | undefined;
  let listen = '127.0.0.1:0';
  const stop = async (): Promise<void> => {
    await stub?.[Symbol.asyncDispose]();
    stub = undefined;
  };
  const start = async (): Promise<string> => {
    stub = await openStub({ directory, listen, onGap: (gap) => gaps.push(gap) });
    listen = stub.address;
    return listen;
  };
  test.teardown(stop);
  const received = () => {
    using store = new ReportStore(join(directory, 'reports.sqlite'));
    return receivedIn(store);
  };
  return { directory, address: await start(), gaps, start, stop, received };
}

const alerts = (from: number, to: number) =>
  Array.from({ length: to - from + 1 }, (_, at) => alert(String(from + at)));

void t.test('reports arrive in their order, and are forgotten when they are stored', async (t) => {
  const receiver = await receiverFor(t);
  const host = await hostFor(t, receiver.address);
  host.keeper.note({ reports: alerts(1, 500) });
  await host.delivered();
  host.keeper.note({ reports: alerts(501, 502) });
  await host.delivered();
  t.same(
    receiver.received().alerts,
    alerts(1, 502).map(({ subject }) => subject),
  );
  t.ok(
    host.said.some((line) => line.includes('the controller takes reports')),
    'it is told once that it works',
  );
});

void t.test(
  'no more is on its way than the receiver allows, and it waits for as long as that says none',
  async (t) => {
    const seen: bigint[] = [];
    let call: DeliverCall | undefined;
    const address = await serve(t, (stream) => {
      call = stream;
      stream.on('data', ({ message }: DeliverRequest) => {
        if (message?.$case === 'hello') stream.write({ acknowledgedThrough: 0n, window: 3 });
        else if (message?.$case === 'report') seen.push(message.value.sequence);
      });
    });
    const host = await hostFor(t, address);
    host.keeper.note({ reports: alerts(1, 50) });
    await eventually(() => seen.length === 3);
    call?.write({ acknowledgedThrough: 2n, window: 0 });
    await eventually(() => host.keeper.outbox.backlog.reports === 48);
    t.same(seen, [1n, 2n, 3n]);
    for (let noted = 0; noted < 100; noted++) host.keeper.note({ reports: alerts(1, 1) });
    t.equal(host.keeper.outbox.backlog.reports, 148, 'a receiver that takes nothing holds nobody up');
    call?.write({ acknowledgedThrough: 2n, window: 2 });
    await eventually(() => seen.length === 4);
    t.same(seen, [1n, 2n, 3n, 4n], 'the third is still on its way');
  },
);

void t.test('what was not acknowledged is sent again on the next connection', async (t) => {
  const seen: bigint[][] = [];
  const address = await serve(t, (stream) => {
    const mine: bigint[] = [];
    const acknowledgedThrough = seen.length === 0 ? 0n : 2n;
    seen.push(mine);
    stream.on('data', ({ message }: DeliverRequest) => {
      if (message?.$case === 'hello') stream.write({ acknowledgedThrough, window: 10 });
      else if (message?.$case === 'report') mine.push(message.value.sequence);
      if (seen.length === 1 && mine.length === 5)
        stream.emit('error', { code: status.UNAVAILABLE, details: 'it ends' });
    });
  });
  const host = await hostFor(t, address);
  host.keeper.note({ reports: alerts(1, 5) });
  await eventually(() => seen[1]?.length === 3);
  t.same(seen, [
    [1n, 2n, 3n, 4n, 5n],
    [3n, 4n, 5n],
  ]);
  t.ok(host.said.some((line) => line.includes('CONTROLLER_UNREACHABLE') && line.includes('it ends')));
});

void t.test('a receiver that acknowledges what was not sent is not believed', async (t) => {
  let hellos = 0;
  const address = await serve(t, (stream) => {
    stream.on('data', ({ message }: DeliverRequest) => {
      if (message?.$case === 'hello') {
        hellos += 1;
        stream.write({ acknowledgedThrough: 0n, window: 1 });
      } else stream.write({ acknowledgedThrough: 2n, window: 1 });
    });
  });
  const host = await hostFor(t, address);
  host.keeper.note({ reports: alerts(1, 3) });
  await eventually(() => hellos > 1);
  t.equal(host.keeper.outbox.backlog.reports, 3);
  t.ok(host.said.some((line) => line.includes('CONTROLLER_REFUSED')));
});

void t.test('a host that is refused says so once, and keeps everything', async (t) => {
  let calls = 0;
  const address = await serve(t, (stream) => {
    calls += 1;
    stream.emit('error', { code: status.PERMISSION_DENIED, details: 'another host' });
  });
  const host = await hostFor(t, address);
  host.keeper.note({ reports: alerts(1, 3) });
  await eventually(() => calls > 3);
  t.equal(host.keeper.outbox.backlog.reports, 3);
  t.equal(host.said.filter((line) => line.includes('CONTROLLER_REFUSED')).length, 1);
});

void t.test(
  'an outbox that was set back delivers what it has, under ids by which nothing counts twice',
  async (t) => {
    const receiver = await receiverFor(t);
    const first = await hostFor(t, receiver.address);
    const { path } = first;
    await receiver.stop();
    first.keeper.note({ reports: alerts(1, 2) });
    await first.end();
    await copyFile(path, `${path}.earlier`);
    await receiver.start();
    const second = await hostFor(t, receiver.address, { path });
    second.keeper.note({ reports: alerts(3, 6) });
    await second.delivered();
    await second.end();
    await copyFile(`${path}.earlier`, path);
    const third = await hostFor(t, receiver.address, { path });
    third.keeper.note({ reports: alerts(7, 7) });
    await third.delivered();
    t.equal(third.keeper.outbox.state.reason, 'set-back');
    t.same(receiver.received().alerts, ['1', '2', '3', '4', '5', '6', '7']);
    t.match(receiver.gaps, [{ reason: 'new-generation', afterSequence: 6, throughSequence: null }]);
  },
);

void t.test('an outbox that was removed is a gap, and what is noted from then on arrives', async (t) => {
  const receiver = await receiverFor(t);
  const first = await hostFor(t, receiver.address);
  first.keeper.note({ reports: alerts(1, 4) });
  await first.delivered();
  const { generation } = first.keeper.outbox.state;
  await first.end();
  const second = await hostFor(t, receiver.address);
  second.keeper.note({ reports: alerts(1, 1) });
  await second.delivered();
  t.match(receiver.gaps, [{ host: hostId, generation, reason: 'new-generation', afterSequence: 4 }]);
  t.same(receiver.received().alerts, ['1', '2', '3', '4', '1']);
});

void t.test('a receiver that was set back is told anew what there is', async (t) => {
  const receiver = await receiverFor(t);
  const host = await hostFor(t, receiver.address);
  host.keeper.note({ reports: alerts(1, 3) });
  await host.delivered();
  await receiver.stop();
  const file = join(receiver.directory, 'reports.sqlite');
  await copyFile(file, `${file}.earlier`);
  await receiver.start();
  host.keeper.note({ reports: alerts(4, 6) });
  await host.delivered();
  await receiver.stop();
  await copyFile(`${file}.earlier`, file);
  host.keeper.note({ reports: alerts(7, 7) });
  const { generation } = host.keeper.outbox.state;
  await receiver.start();
  await host.delivered();
  t.equal(host.keeper.outbox.state.reason, 'receiver-set-back');
  t.match(receiver.gaps, [
    { reason: 'receiver-set-back', generation, afterSequence: 3, throughSequence: null },
  ]);
  t.same(receiver.received().alerts, ['1', '2', '3', '7'], 'what waited has its place');
});

void t.test('a new controller is told what the earlier one knew, and the log says so', async (t) => {
  const receiver = await receiverFor(t);
  const host = await hostFor(t, receiver.address);
  const told = (seen: string) => [{ kind: 'machine', subject: 'm', seen }];
  host.keeper.note({
    reports: [machine('m')],
    told: told('running'),
    cursor: { name: 'jobs', value: { journal: 'j', change: 1 } },
  });
  await host.delivered();
  await receiver.stop();
  await Promise.all(
    ['', '-wal', '-shm'].map((end) => rm(join(receiver.directory, `reports.sqlite${end}`), { force: true })),
  );
  await receiver.start();
  await eventually(() => host.keeper.outbox.told('machine').get('m')?.isSure === false);
  t.equal(host.keeper.outbox.cursor('jobs'), undefined, 'the journal is read anew');
  host.keeper.note({ reports: [machine('m')], told: told('running') });
  await host.delivered();
  t.same(receiver.received().sequences, [1]);
  t.match(receiver.gaps, [{ reason: 'receiver-set-back', afterSequence: 0 }]);
  const line = host.said.find((text) => text.includes('told everything anew'));
  t.match(line, 'it is another one, or was set back');
  const { generation } = host.keeper.outbox.state;
  await receiver.stop();
  await receiver.start();
  host.keeper.note({ reports: alerts(1, 1) });
  await host.delivered();
  t.equal(host.keeper.outbox.state.generation, generation, 'once: a restart is no new controller');
});

void t.test('days without a controller: nothing that lasts is lost, and the rest is counted', async (t) => {
  const receiver = await receiverFor(t);
  await receiver.stop();
  let nowMs = Date.parse('2026-11-22T02:00Z');
  const host = await hostFor(t, receiver.address, { maxBytes: 256 * 1024, now: () => nowMs });
  const minutes = 5 * 24 * 60;
  for (let minute = 0; minute < minutes; minute += 15) {
    nowMs += 900_000;
    // Somebody sets the clock back by a year, and forth again.
    if (minute === 3_000 || minute === 4_000) nowMs += minute === 3_000 ? -31_536_000_000 : 31_536_000_000;
    const reports = [machine('m', `state ${minute}`), machine('n', `state ${minute}`)];
    if (minute % 60 === 0) reports.push(alert(String(minute / 60), 'x'.repeat(500)));
    host.keeper.note({ reports });
  }
  t.ok(host.keeper.outbox.backlog.sizeBytes <= 256 * 1024);
  await receiver.start();
  await host.delivered();
  const received = receiver.received();
  t.equal(disagreement(received, host.keeper.outbox.state.lastSequence), undefined);
  t.same(
    received.alerts,
    Array.from({ length: minutes / 60 }, (_, hour) => String(hour)),
  );
  t.same([...received.thinned.keys()], ['machine', 'thinned']);
  t.ok(
    [...received.thinned.values()].every(({ lost }) => lost === 0),
    'all of it was said again later',
  );
});

void t.test('what lasts and does not fit goes from its oldest on, and it is said how much', async (t) => {
  const receiver = await receiverFor(t);
  await receiver.stop();
  const host = await hostFor(t, receiver.address, { maxBytes: 64 * 1024 });
  const count = 400;
  for (let next = 1; next <= count; next++)
    host.keeper.note({ reports: [alert(String(next), 'x'.repeat(200))] });
  await receiver.start();
  await host.delivered();
  const received = receiver.received();
  t.equal(disagreement(received, host.keeper.outbox.state.lastSequence), undefined);
  const first = Number(received.alerts[0]);
  t.ok(first > 1);
  t.same(
    received.alerts,
    Array.from({ length: count - first + 1 }, (_, at) => String(first + at)),
    'the newest are there',
  );
  t.match(received.thinned.get('alert'), { lost: first - 1, superseded: 0 });
});

void t.test('delays double up to a maximum, by chance up to a half shorter, and begin anew', (t) => {
  let chance = 0;
  const backoff = new Backoff({ firstMs: 1_000, maxMs: 10_000, random: () => chance });
  const next = () => backoff.next();
  t.same([next(), next(), next(), next(), next()], [1_000, 2_000, 4_000, 8_000, 10_000]);
  chance = 1;
  t.equal(next(), 5_000);
  backoff.reset();
  t.equal(next(), 500);
  t.end();
});

void t.test('a controller that is away for long is told once, and then that it is back', async (t) => {
  const receiver = await receiverFor(t);
  await receiver.stop();
  const host = await hostFor(t, receiver.address);
  host.keeper.note({ reports: alerts(1, 1) });
  const failures = () => host.said.filter((line) => line.includes('CONTROLLER_UNREACHABLE'));
  await eventually(() => failures().length > 0);
  const attempts = host.attempts.length;
  await eventually(() => host.attempts.length > attempts + 5);
  t.equal(failures().length, 1);
  await receiver.start();
  await host.delivered();
  t.equal(host.said.filter((line) => line.includes('takes reports"')).length, 1);
});
