import { once } from 'node:events';
import { join } from 'node:path';

import { type ClientDuplexStream, credentials, type ServiceError, status } from '@grpc/grpc-js';
import t, { type Test } from 'tap';

import { newId } from '../common/ids.ts';
import {
  type DeliverRequest,
  type DeliverResponse,
  GenerationReason,
  type Report,
  ReportServiceClient,
} from '../proto/generated/stillpoint/v1/report.ts';
import { receivedIn } from '../test/sim/reports.ts';
import { type Gap, ReportStore } from './reportStore.ts';
import { openStub, reportJson } from './stub.ts';

const host = newId();
const generation = newId();

function hello(more: { hostId?: string; generation?: string } = {}): DeliverRequest {
  const value = {
    hostId: host,
    hostName: 'test',
    agentVersion: '0',
    generation,
    generationReason: GenerationReason.GENERATION_REASON_NO_OUTBOX,
    generationTime: new Date(),
    ...more,
  };
  return { message: { $case: 'hello', value } };
}

function report(sequence: number, more: Partial<Report> = {}): DeliverRequest {
  const error = { code: 'TEST', message: '', hint: '', retryable: false };
  const value = {
    id: newId(),
    sequence: BigInt(sequence),
    previousSequence: BigInt(sequence - 1),
    time: new Date(),
    body: { $case: 'alert', value: { key: String(sequence), raised: true, error } } as const,
    ...more,
  };
  return { message: { $case: 'report', value } };
}

/** A stream of a host that does as the test wants. */
class Stream {
  readonly call: ClientDuplexStream<DeliverRequest, DeliverResponse>;
  readonly ended: Promise<ServiceError>;

  constructor(client: ReportServiceClient) {
    this.call = client.deliver();
    this.ended = new Promise((resolve) => {
      this.call.on('error', (error: ServiceError) => resolve(error));
    });
  }

  /** Sends, and waits until all up to a number is acknowledged. */
  async send(through: number, ...requests: readonly DeliverRequest[]): Promise<DeliverResponse> {
    for (const request of requests) this.call.write(request);
    for (;;) {
      const [answer]: DeliverResponse[] = await once(this.call, 'data');
      if (answer !== undefined && Number(answer.acknowledgedThrough) >= through) return answer;
    }
  }
}

async function receiverFor(test: Test) {
  const directory = test.testdir({});
  const gaps: Gap[] = [];
  const lines: unknown[] = [];
  const stub = await openStub({
    directory,
    listen: '127.0.0.1:0',
    onGap: (gap) => gaps.push(gap),
    onReport: (one) => lines.push(reportJson(one)),
  });
  const client = new ReportServiceClient(stub.address, credentials.createInsecure());
  test.teardown(async () => {
    client.close();
    await stub[Symbol.asyncDispose]();
  });
  const received = () => {
    using store = new ReportStore(join(directory, 'reports.sqlite'));
    return receivedIn(store);
  };
  return { open: () => new Stream(client), gaps, lines, received };
}

void t.test('what is acknowledged is stored, once, and the next stream is told how far', async (t) => {
  const receiver = await receiverFor(t);
  const first = receiver.open();
  t.match(await first.send(0, hello()), { acknowledgedThrough: 0n });
  const second = report(2);
  await first.send(2, report(1), second, second);
  t.same(receiver.received().alerts, ['1', '2']);
  const next = receiver.open();
  t.match(await next.send(0, hello()), { acknowledgedThrough: 2n });
  t.equal((await first.ended).code, status.ABORTED, 'a host has one stream');
  await next.send(3, report(1), second, report(3));
  t.same(receiver.received().alerts, ['1', '2', '3']);
  t.match(receiver.lines[2], {
    arrival: 3,
    host,
    generation,
    sequence: 3,
    kind: 'alert',
    body: { key: '3' },
  });
});

void t.test('a report that arrives in another generation is the same one', async (t) => {
  const receiver = await receiverFor(t);
  const stream = receiver.open();
  const one = report(1);
  await stream.send(0, hello());
  await stream.send(1, one);
  const next = receiver.open();
  t.match(await next.send(0, hello({ generation: newId() })), { acknowledgedThrough: 0n });
  await next.send(2, one, report(2));
  t.same(receiver.received().alerts, ['1', '2']);
  t.match(receiver.gaps, [{ host, generation, afterSequence: 1, reason: 'new-generation' }]);
});

void t.test('hosts do not meet, whatever ids and numbers they use', async (t) => {
  const receiver = await receiverFor(t);
  const one = report(1);
  const first = receiver.open();
  const second = receiver.open();
  await first.send(0, hello());
  await second.send(0, hello({ hostId: newId() }));
  await first.send(1, one);
  await second.send(1, one);
  t.same(receiver.received().alerts, ['1', '1']);
});

void t.test('a stream that breaks the rules is refused, with what it had brought before', async (t) => {
  const wrong: readonly (readonly [string, readonly DeliverRequest[]])[] = [
    ['no hello', [report(1)]],
    ['nothing at all', [{ message: undefined }]],
    ['two hellos', [hello(), hello()]],
    ['a host without a UUID', [hello({ hostId: '../x' })]],
    ['a report without a UUID', [hello(), report(1, { id: 'x' })]],
    ['no number', [hello(), report(0, { previousSequence: 0n })]],
    ['a number that nobody can count to', [hello(), report(1, { sequence: 2n ** 60n })]],
    ['one before itself', [hello(), report(1, { previousSequence: 1n })]],
  ];
  const receiver = await receiverFor(t);
  for (const [what, requests] of wrong) {
    const stream = receiver.open();
    stream.call.on('data', () => undefined);
    for (const request of requests) stream.call.write(request);
    t.equal((await stream.ended).code, status.INVALID_ARGUMENT, what);
  }
  t.same(receiver.received().alerts, []);
});

void t.test('a report of a kind that is not known yet is kept as one that was there', async (t) => {
  const receiver = await receiverFor(t);
  const stream = receiver.open();
  await stream.send(0, hello());
  await stream.send(1, report(1, { body: undefined }));
  t.match(receiver.lines, [{ sequence: 1, kind: 'unknown', body: {} }]);
});

void t.test('without certificates only this host is listened to', async (t) => {
  const directory = t.testdir({});
  for (const listen of ['0.0.0.0:0', 'example.net:9774', '[::]:0', '127.0.0.1', ''])
    await t.rejects(openStub({ directory, listen }), { code: 'CANNOT_LISTEN' }, listen);
  await using stub = await openStub({ directory, listen: '127.0.0.1:0' });
  await t.rejects(openStub({ directory: t.testdir({}), listen: stub.address }), { code: 'CANNOT_LISTEN' });
});
