import { once } from 'node:events';
import { connect } from 'node:http2';
import { connect as connectSocket } from 'node:net';
import { credentials, Metadata, ServerCredentials, status } from '@grpc/grpc-js';
import t from 'tap';
import { HealthClient } from '../../proto/generated/grpc/health/v1/health.ts';
import {
  type ServerReflectionResponse,
  ServerReflectionClient,
} from '../../proto/generated/grpc/reflection/v1/reflection.ts';
import {
  AgentClient,
  type GetHostResponse,
  type ListMachinesResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import {
  answerOf,
  firstJob,
  gathered,
  refusal,
  ServedSite,
  startBackup,
  watched,
} from '../../test/sim/servedSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';
import { createApiServer } from './apiServer.ts';
import { ApiError } from './errors.ts';
import { serveOnSocket } from './socketListener.ts';

/* The API of a simulated host, over a real socket. */

t.teardown(removeSharedImages);

void t.test('a message that is too large is refused, and the connection goes on', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const labels = { a: 'x'.repeat(5 * 1024 * 1024) };
  t.equal((await refusal(startBackup(client, { labels }))).status, status.RESOURCE_EXHAUSTED);
  t.ok(firstJob(await startBackup(client)).id);
});

void t.test('a call has a deadline, its own or one of ours, and none may be for ever', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const long = { deadline: Date.now() + 3_600_000 };
  const call = answerOf<GetHostResponse>((done) => client.getHost({ view: 0 }, new Metadata(), long, done));
  t.same(await refusal(call), { code: 'DEADLINE_TOO_LONG', status: status.INVALID_ARGUMENT });
  const near = { deadline: Date.now() + 60_000 };
  t.ok(await answerOf<GetHostResponse>((done) => client.getHost({ view: 0 }, new Metadata(), near, done)));

  const { hypervisor } = served.living.agent.parts;
  const held = Promise.withResolvers<never>();
  Object.assign(hypervisor, { machines: () => held.promise });
  const soon = { deadline: Date.now() + 200 };
  const slow = answerOf<ListMachinesResponse>((done) =>
    client.listMachines({ pageSize: 0, pageToken: '' }, new Metadata(), soon, done),
  );
  t.equal((await refusal(slow)).status, status.DEADLINE_EXCEEDED);
});

void t.test('who may not use the service is told so by every call', async (t) => {
  await using served = await ServedSite.create();
  const refuse = (): never => {
    throw new ApiError('CALLER_DENIED', 'not you');
  };
  const server = createApiServer(served.api.context, refuse);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    );
  });
  const address = [`127.0.0.1:${port}`, credentials.createInsecure()] as const;
  const [client, health] = [new AgentClient(...address), new HealthClient(...address)];
  const denied = { code: 'CALLER_DENIED', status: status.PERMISSION_DENIED };
  t.same(await refusal(startBackup(client)), denied);
  t.same(await refusal(answerOf<GetHostResponse>((done) => client.getHost({ view: 0 }, done))), denied);
  t.same(await refusal(watched(client, 'any')), denied);
  t.same(await refusal(answerOf((done) => health.check({ service: '' }, done))), denied);
  t.equal(served.living.journal.list().length, 0);
  client.close();
  health.close();
  server.forceShutdown();
});

void t.test('health tells whether the service begins anything', async (t) => {
  await using served = await ServedSite.create();
  const health = new HealthClient(`unix:${served.socket}`, credentials.createInsecure());
  const check = (service: string) => answerOf((done) => health.check({ service }, done));
  t.same(await check(''), { status: 1 });
  t.same(await check('stillpoint.v1.Agent'), { status: 1 });
  t.equal((await refusal(check('other'))).status, status.NOT_FOUND);
  const watching = health.watch({ service: '' });
  const told: unknown[] = [];
  watching.on('error', () => undefined);
  const two = Promise.withResolvers<void>();
  watching.on('data', (response) => {
    told.push(response);
    if (told.length === 1) served.ask();
    if (told.length === 2) two.resolve();
  });
  await two.promise;
  t.same(told, [{ status: 1 }, { status: 2 }]);
  health.close();
});

void t.test('a client finds out by reflection what there is', async (t) => {
  await using served = await ServedSite.create();
  const client = new ServerReflectionClient(`unix:${served.socket}`, credentials.createInsecure());
  const stream = client.serverReflectionInfo();
  const questions = [
    { $case: 'listServices', value: '' },
    { $case: 'fileContainingSymbol', value: 'stillpoint.v1.Agent.StartBackup' },
    { $case: 'fileByFilename', value: 'stillpoint/v1/errors.proto' },
    { $case: 'fileContainingSymbol', value: 'no.such.Thing' },
  ] as const;
  for (const messageRequest of questions) stream.write({ host: '', messageRequest });
  stream.end();
  const answers = await gathered<ServerReflectionResponse>(stream);
  const [services, file, errors, none] = answers.map(({ messageResponse }) => messageResponse);
  t.match(services, { $case: 'listServicesResponse' });
  t.match(JSON.stringify(services), /stillpoint\.v1\.Agent/);
  if (file?.$case !== 'fileDescriptorResponse') throw new Error('no file');
  t.equal(file.value.fileDescriptorProto.length, 3, 'with the errors and timestamps that it needs');
  t.match(errors, { $case: 'fileDescriptorResponse' });
  t.match(none, { $case: 'errorResponse', value: { errorCode: status.NOT_FOUND } });
  client.close();
});

void t.test('a second service of the host is refused, and the first goes on', async (t) => {
  await using served = await ServedSite.create();
  await t.rejects(serveOnSocket(served.api.context, { path: served.socket, group: null }), {
    code: 'SERVICE_RUNNING',
  });
  t.ok(await answerOf((done) => served.client().getHost({ view: 0 }, done)));
});

void t.test('more calls at a time than a connection may have wait, and none is lost', async (t) => {
  await using served = await ServedSite.create();
  const session = connect('http://localhost', { createConnection: () => connectSocket(served.socket) });
  const [{ maxConcurrentStreams }] = await once(session, 'remoteSettings');
  t.equal(maxConcurrentStreams, 64);
  session.close();
  const client = served.client();
  const calls = Array.from({ length: 200 }, () =>
    answerOf<GetHostResponse>((done) => client.getHost({ view: 0 }, done)),
  );
  t.equal((await Promise.all(calls)).length, 200);
});
