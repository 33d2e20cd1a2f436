import { request } from 'node:http';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { once } from 'node:events';
import t, { type Test } from 'tap';
import { MetricsServer } from './metricsServer.ts';

const loopback = { host: '127.0.0.1', port: 0 };

async function serverFor(
  test: Test,
  answer: () => Promise<string> = () => Promise.resolve('figures\n'),
): Promise<{ readonly server: MetricsServer; readonly errors: unknown[] }> {
  const errors: unknown[] = [];
  const server = await MetricsServer.start({
    address: loopback,
    contentType: 'text/plain; version=0.0.4',
    text: answer,
    onError: (error) => errors.push(error),
  });
  test.after(() => server[Symbol.asyncDispose]());
  return { server, errors };
}

async function ask(
  { address }: MetricsServer,
  path: string,
  method = 'GET',
): Promise<{
  readonly status: number | undefined;
  readonly type: string | undefined;
  readonly body: string;
}> {
  const sent = request({ ...address, path, method, agent: false }).end();
  const [response] = await once(sent, 'response');
  return {
    status: response.statusCode,
    type: response.headers['content-type'],
    body: await text(response),
  };
}

void t.test('GET /metrics is answered, and nothing else is', async (t) => {
  const { server } = await serverFor(t);
  t.same(await ask(server, '/metrics'), {
    status: 200,
    type: 'text/plain; version=0.0.4',
    body: 'figures\n',
  });
  for (const path of ['/', '/metrics/', '/metrics?x=1', '/../metrics', '/favicon.ico'])
    t.match(await ask(server, path), { status: 404 }, path);
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS'])
    t.match(await ask(server, '/metrics', method), { status: 405 }, method);
});

void t.test('what goes wrong is told to the service, and not to who has asked', async (t) => {
  const failure = new Error('the password of the journal is hush');
  const { server, errors } = await serverFor(t, () => Promise.reject(failure));
  const answer = await ask(server, '/metrics');
  t.equal(answer.status, 500);
  t.notMatch(answer.body, 'hush');
  t.same(errors, [failure]);
});

void t.test(
  'no more connections are held than a few scrapers need, and they do not outlive the service',
  async (t) => {
    const { server } = await serverFor(t);
    const sockets = Array.from({ length: 24 }, () => connect(server.address));
    t.after(() => sockets.forEach((socket) => socket.destroy()));
    const closed = sockets.map((socket) => {
      const { promise, resolve } = Promise.withResolvers<typeof socket>();
      socket.on('error', () => undefined);
      socket.once('close', () => resolve(socket));
      return promise;
    });
    // Those beyond the limit are closed at once, the others when the server ends.
    const first = await Promise.any(closed);
    t.ok(first.destroyed);
    t.ok(sockets.filter((socket) => !socket.destroyed).length >= 1);
    await server[Symbol.asyncDispose]();
    await Promise.all(closed);
  },
);

void t.test('an address that is taken is told with who to ask', async (t) => {
  const { server } = await serverFor(t);
  const second = MetricsServer.start({
    address: server.address,
    contentType: 'text/plain',
    text: () => Promise.resolve(''),
    onError: () => undefined,
  });
  await t.rejects(second, { code: 'METRICS_UNAVAILABLE', hint: /ss -tlnp/, retryable: true });
});
