import { credentials, Metadata, Server, ServerCredentials, status } from '@grpc/grpc-js';
import t from 'tap';
import {
  HealthClient,
  type HealthServer,
  HealthService,
} from '../../proto/generated/grpc/health/v1/health.ts';
import { callRules } from './callRules.ts';

/** A server whose one call never answers, and tells when nobody waits for that any more. */
async function silentServer(): Promise<
  { readonly client: HealthClient; readonly given: Promise<void> } & Disposable
> {
  const deadlines = { defaultMs: 200, maxMs: 1000 };
  const server = new Server({
    interceptors: [callRules(() => ({ kind: 'controller', name: 'c' }), deadlines)],
  });
  const given = Promise.withResolvers<void>();
  const silent: HealthServer = {
    check: (call) => void call.on('cancelled', () => given.resolve()),
    watch: (call) => void call.write({ status: 1 }),
  };
  server.addService(HealthService, silent);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) resolve(bound);
      else reject(error);
    });
  });
  const client = new HealthClient(`127.0.0.1:${port}`, credentials.createInsecure());
  const end = (): void => {
    client.close();
    server.forceShutdown();
  };
  return { client, given: given.promise, [Symbol.dispose]: end };
}

function statusOfCheck(client: HealthClient, deadline?: number): Promise<status | undefined> {
  const options = deadline === undefined ? {} : { deadline };
  return new Promise((resolve) => {
    client.check({ service: '' }, new Metadata(), options, (error) => resolve(error?.code));
  });
}

void t.test('a call without a deadline gets one, and its handler hears of that', async (t) => {
  using server = await silentServer();
  t.equal(await statusOfCheck(server.client), status.DEADLINE_EXCEEDED);
  await server.given;
});

void t.test('a call that asks for too much time is refused at once', async (t) => {
  using server = await silentServer();
  t.equal(await statusOfCheck(server.client, Date.now() + 60_000), status.INVALID_ARGUMENT);
});

void t.test('a stream lasts as long as its client wants', async (t) => {
  using server = await silentServer();
  const stream = server.client.watch({ service: '' });
  stream.on('error', () => undefined);
  const told = await new Promise((resolve) => stream.once('data', resolve));
  t.same(told, { status: 1 });
  // A call that begins later has had its time: the stream goes on.
  t.equal(await statusOfCheck(server.client), status.DEADLINE_EXCEEDED);
  t.notOk(stream.destroyed);
  stream.cancel();
});

void t.test('more time than grpc-js can count is still time, and still too much for a call', async (t) => {
  using server = await silentServer();
  for (const days of [25, 30, 50, 400]) {
    const deadline = Date.now() + days * 24 * 3_600_000;
    t.equal(await statusOfCheck(server.client, deadline), status.INVALID_ARGUMENT, `a call of ${days} days`);
    const stream = server.client.watch({ service: '' }, { deadline });
    const told = await new Promise((resolve) => {
      stream.once('data', resolve);
      stream.once('error', resolve);
    });
    t.same(told, { status: 1 }, `a stream of ${days} days`);
    // A timeout that has wrapped ends the stream right after its first message.
    const call = statusOfCheck(server.client);
    const ended = new Promise((resolve) => stream.once('error', resolve));
    t.equal(await Promise.race([ended, call]), status.DEADLINE_EXCEEDED, 'which goes on');
    stream.on('error', () => undefined);
    stream.cancel();
  }
});
