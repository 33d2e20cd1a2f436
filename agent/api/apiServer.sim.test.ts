import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { connect } from 'node:http2';
import { connect as connectSocket } from 'node:net';
import { DatabaseSync } from 'node:sqlite';
import { credentials, Metadata, ServerCredentials, status } from '@grpc/grpc-js';
import t from 'tap';
import { HealthClient } from '../../proto/generated/grpc/health/v1/health.ts';
import {
  type ServerReflectionResponse,
  ServerReflectionClient,
} from '../../proto/generated/grpc/reflection/v1/reflection.ts';
import {
  AgentClient,
  BackupState,
  type GetBackupResponse,
  type GetHostResponse,
  type GetJobResponse,
  HostView,
  type Job,
  JobHold,
  JobState,
  type ListBackupsResponse,
  type ListJobsResponse,
  type ListMachinesResponse,
  MachineState,
  type RetryJobResponse,
  type WatchEventsResponse,
  type WatchJobResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import {
  type Answer,
  answerOf,
  firstJob,
  gathered,
  ServedSite,
  startBackup,
  startRequest,
  watched,
} from '../../test/sim/servedSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';
import { createApiServer } from './apiServer.ts';
import { ApiError } from './errors.ts';
import { detailOf } from './grpcErrors.ts';
import { JobSignals } from './jobSignals.ts';
import { watchJob } from './jobWatch.ts';
import { serveOnSocket } from './socketListener.ts';
import { fingerprintOf, partsOf, startRequestOf } from './startRequest.ts';

/* The API of a simulated host, over a real socket. */

t.teardown(removeSharedImages);

/** The code that a call was refused with. */
async function refusal(call: Promise<unknown>): Promise<{ readonly code: string; readonly status: number }> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof Error) || !('metadata' in error) || !(error.metadata instanceof Metadata))
      throw error;
    const code = detailOf({ metadata: error.metadata })?.code ?? '';
    return { code, status: 'code' in error ? Number(error.code) : -1 };
  }
  throw new Error('the call was not refused');
}

/** The last job of what was told of it. */
function lastJob(told: Awaited<ReturnType<typeof watched>>): Job {
  const [job] = told.flatMap(({ update }) => (update?.$case === 'job' ? [update.value] : [])).slice(-1);
  if (job === undefined) throw new Error('no job was told of');
  return job;
}

/** The steps whose end was told of. */
function endedSteps(told: Awaited<ReturnType<typeof watched>>): readonly string[] {
  return told.flatMap(({ update }) =>
    update?.$case === 'step' && update.value.durationMs !== undefined ? [update.value.name] : [],
  );
}

function warningsAndCopies(told: Awaited<ReturnType<typeof watched>>): readonly string[] {
  return told.flatMap(({ update }) => {
    if (update?.$case === 'warning') return [update.value];
    return update?.$case === 'copy' ? [update.value.toStorage] : [];
  });
}

void t.test('a backup is begun, followed to its end, and found with what it has made', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const job = firstJob(await startBackup(client, { labels: { reason: 'test' } }));
  t.equal(job.machine?.name, 'm');
  const told = await watched(client, job.id);
  t.equal(lastJob(told).state, JobState.JOB_STATE_FINISHED);
  t.equal(lastJob(told).hold, JobHold.JOB_HOLD_UNSPECIFIED);
  const steps = told.flatMap(({ update }) => (update?.$case === 'step' ? [update.value.name] : []));
  t.same([...new Set(steps)], ['preflight', 'begin', 'retain', 'end', 'commit', 'cleanup']);

  const {
    backup,
    job: ended,
    steps: all,
  } = await answerOf<GetJobResponse>((done) => client.getJob({ id: job.id }, done));
  t.equal(ended?.backupId, backup?.id);
  t.equal(all.length, 6);
  t.equal(backup?.state, BackupState.BACKUP_STATE_ACTIVE);
  t.same(backup?.labels, { reason: 'test' });
  t.equal(JSON.parse(backup?.manifestJson ?? '').id, backup?.id);
  const listed = await answerOf<ListBackupsResponse>((done) =>
    client.listBackups({ pageSize: 0, pageToken: '', machine: 'm', storage: '' }, done),
  );
  t.same(
    listed.backups.map(({ id, manifestJson }) => ({ id, manifestJson })),
    [{ id: backup?.id, manifestJson: '' }],
  );
  const found = await answerOf<GetBackupResponse>((done) =>
    client.getBackup({ reference: 'm@latest' }, done),
  );
  t.same(found.backup, backup);
  t.match(served.said.join(''), /"caller":"uid \d+","pid":\d+,"msg":"backup asked for"/);
});

void t.test('the same key begins one backup, however often and whoever restarts meanwhile', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const answers = await Promise.all(Array.from({ length: 5 }, () => startBackup(client)));
  const { id } = firstJob(await startBackup(client));
  t.same([...new Set(answers.map((answer) => firstJob(answer).id))], [id]);
  t.same(await refusal(startBackup(client, { reread: true })), {
    code: 'IDEMPOTENCY_KEY_REUSED',
    status: status.FAILED_PRECONDITION,
  });
  await watched(client, id);
  await served.stop();
  await served.start();
  const later = firstJob(await startBackup(served.client()));
  t.equal(later.id, id);
  t.equal(later.state, JobState.JOB_STATE_FINISHED);
  t.equal(served.living.journal.list().length, 1);
});

void t.test(
  'what cannot be begun for one machine hinders no other, and is answered alike again',
  async (t) => {
    await using served = await ServedSite.create();
    const client = served.client();
    const answer = await startBackup(client, { machines: ['nobody', 'm'] });
    const [nobody, m] = answer.backups;
    t.match(nobody?.outcome, { $case: 'error', value: { code: 'MACHINE_NOT_FOUND', about: 'nobody' } });
    t.equal(m?.outcome?.$case, 'job');
    const again = await startBackup(client, { machines: ['nobody', 'm'] });
    t.same(again.backups[0], nobody);
  },
);

void t.test('a request that was cut short by the end of its process is gone on with', async (t) => {
  await using served = await ServedSite.create();
  await served.site.addMachine('n');
  const client = served.client();
  const machines = ['m', 'n'];
  // What a process has written down that was killed between the two machines.
  const asked = startRequest({ machines });
  const part = { scope: 'socket:uid 0', key: asked.idempotencyKey, part: 'm' };
  const { agent, journal } = served.living;
  journal.requests.open(part, fingerprintOf('backup', partsOf(startRequestOf(asked))));
  const begun = await agent.createBackup({ machine: 'm' }, { request: part });
  await agent.run(begun);

  const { backups } = await startBackup(client, { machines });
  const [m = '', n = ''] = backups.map(({ outcome }) => (outcome?.$case === 'job' ? outcome.value.id : ''));
  t.equal(m, begun.id);
  t.equal(lastJob(await watched(client, n)).machine?.name, 'n');
  t.equal(journal.list().length, 2);
});

void t.test(
  'a watcher that was cut off goes on behind its cursor, also after a restart of the service',
  async (t) => {
    await using served = await ServedSite.create();
    const client = served.client();
    const { id } = firstJob(await startBackup(client));
    const told = await watched(client, id);
    t.equal(endedSteps(told).at(-1), 'cleanup');
    await served.stop();
    await served.start();
    for (const [index, { cursor }] of told.entries())
      t.same(
        endedSteps(await watched(served.client(), id, { cursor })),
        endedSteps(told.slice(index + 1)),
        `behind response ${index + 1}: all that was not told before, and nothing of what was`,
      );
    const nothing = await watched(served.client(), id, { cursor: told.at(-1)?.cursor ?? '' });
    t.same(
      nothing.map(({ update }) => update?.$case),
      ['job'],
    );
    const another = firstJob(await startBackup(served.client(), { idempotencyKey: randomUUID() }));
    const [first] = await watched(served.client(), another.id);
    for (const cursor of ['nonsense', first?.cursor ?? ''])
      t.equal((await refusal(watched(served.client(), id, { cursor }))).code, 'REQUEST_INVALID');
  },
);

void t.test(
  'a cursor of an earlier run of the service passes over no warning and no copy of this one',
  async (t) => {
    await using served = await ServedSite.create();
    const { id } = firstJob(await startBackup(served.client()));
    await watched(served.client(), id);
    const { agent } = served.living;
    const never = new AbortController().signal;
    const run = (copiedTo: readonly string[]) => {
      const signals = new JobSignals();
      const outcomes = copiedTo.map((to) => ({ from: 'local', to, job: null, error: null }));
      const started = { isAtWork: () => false, copiesOf: () => ({ outcomes, ended: true }) };
      return {
        warn: (message: string) => signals.listener().warning?.(id, message),
        watch: async (cursor: string) => {
          const told: WatchJobResponse[] = [];
          const request = { id, cursor, withCopies: true };
          for await (const one of watchJob({ agent, signals, started }, request, never)) told.push(one);
          return told;
        },
      };
    };
    const earlier = run(['vault']);
    earlier.warn('one');
    earlier.warn('two');
    const told = await earlier.watch('');
    t.same(warningsAndCopies(told), ['one', 'two', 'vault']);
    const cursor = told.at(-1)?.cursor ?? '';
    t.same(warningsAndCopies(await earlier.watch(cursor)), []);
    const later = run(['cloud']);
    later.warn('three');
    const toldLater = await later.watch(cursor);
    t.same(warningsAndCopies(toldLater), ['three', 'cloud']);
    t.same(endedSteps(toldLater), [], 'and repeats no step');
    t.same(warningsAndCopies(await later.watch(toldLater.at(-1)?.cursor ?? '')), []);
  },
);

void t.test('not more backups run at a time than may, and a client that goes away ends none', async (t) => {
  await using served = await ServedSite.create({ agent: { maxParallelMachines: 1 } });
  await served.site.addMachine('n');
  const client = served.client();
  const { backups } = await startBackup(client, { machines: ['m', 'n'] });
  client.close();
  const other = served.client();
  const ids = backups.map(({ outcome }) => (outcome?.$case === 'job' ? outcome.value.id : ''));
  for (const id of ids) t.equal(lastJob(await watched(other, id)).state, JobState.JOB_STATE_FINISHED);
  const [first, second] = ids.map((id) => served.living.journal.steps(id));
  const endOfFirst = (first?.at(-1)?.startedAtMs ?? 0) + (first?.at(-1)?.durationMs ?? 0);
  t.ok(
    (second?.[0]?.startedAtMs ?? 0) >= Math.floor(endOfFirst),
    'the second began when the first had ended',
  );
});

void t.test('a backup that waits for its turn is cancelled at once', async (t) => {
  await using served = await ServedSite.create({ agent: { maxParallelMachines: 1 } });
  await served.site.addMachine('n');
  const held = Promise.withResolvers<void>();
  const storage = served.living.storages.get('near');
  if (storage === undefined) throw new Error('no storage');
  const begin = storage.begin.bind(storage);
  storage.begin = async (request) => {
    if (request.machine.name === 'm') await held.promise;
    return begin(request);
  };
  const client = served.client();
  const { backups } = await startBackup(client, { machines: ['m', 'n'] });
  const [m = '', n = ''] = backups.map(({ outcome }) => (outcome?.$case === 'job' ? outcome.value.id : ''));
  await answerOf((done) => client.cancelJob({ id: n }, done));
  t.equal(lastJob(await watched(client, n)).state, JobState.JOB_STATE_CANCELLED);
  held.resolve();
  t.equal(lastJob(await watched(client, m)).state, JobState.JOB_STATE_FINISHED);
  t.equal((await refusal(answerOf((done) => client.cancelJob({ id: n }, done)))).code, 'JOB_STATE_INVALID');
  const retry = { id: n, idempotencyKey: 'retry-1' };
  t.equal((await refusal(answerOf((done) => client.retryJob(retry, done)))).code, 'JOB_STATE_INVALID');
});

void t.test('a job that was left with work is gone on with, once for each key', async (t) => {
  await using served = await ServedSite.create();
  const { agent, journal } = served.living;
  const { id } = await agent.createBackup({ machine: 'm' });
  const error = { code: 'HYPERVISOR_UNREACHABLE', message: 'libvirt was away', retryable: true };
  journal.end(id, { state: 'failed', error, holdsMachine: true });
  const client = served.client();
  const retry = (idempotencyKey: string) =>
    answerOf<RetryJobResponse>((done) => client.retryJob({ id, idempotencyKey }, done));
  t.equal((await refusal(retry(''))).code, 'REQUEST_INVALID');
  t.not((await retry('retry-1')).job?.hold, JobHold.JOB_HOLD_PARKED, 'it was taken over');
  t.equal(lastJob(await watched(client, id)).hold, JobHold.JOB_HOLD_UNSPECIFIED);
  t.equal((await retry('retry-1')).job?.id, id, 'the same request is answered again');
  t.equal(
    (await refusal(retry('retry-2'))).code,
    'JOB_STATE_INVALID',
    'another one has nothing to go on with',
  );
});

void t.test('a service that ends begins nothing more, and brings to its end what it has begun', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const { id } = firstJob(await startBackup(client));
  served.ask();
  t.same(await refusal(startBackup(client, { idempotencyKey: 'key-2' })), {
    code: 'SERVICE_ENDING',
    status: status.UNAVAILABLE,
  });
  t.equal(firstJob(await startBackup(client)).id, id, 'what it has begun it still answers for');
  const told = watched(client, id);
  const { journal } = served.living;
  await served.stop();
  t.equal(journal.get(id).state, 'finished');
  t.equal(lastJob(await told).state, JobState.JOB_STATE_FINISHED, 'and its watchers hear of that');
});

void t.test('copies that the policy asks for are made by the service, and told of', async (t) => {
  await using served = await ServedSite.create({
    storages: ['near', 'vault'],
    policy: { storages: ['near'], replicate: [{ from: 'near', to: 'vault' }] },
  });
  const client = served.client();
  const job = firstJob(await startBackup(client));
  const told = await watched(client, job.id, { withCopies: true });
  const copies = told.flatMap(({ update }) => (update?.$case === 'copy' ? [update.value] : []));
  t.match(copies, [
    {
      fromStorage: 'near',
      toStorage: 'vault',
      state: JobState.JOB_STATE_FINISHED,
      backupIds: [lastJob(told).backupId],
      error: undefined,
    },
  ]);
});

void t.test(
  'events tell of machines and jobs, go on behind a cursor, and say when they cannot',
  async (t) => {
    await using served = await ServedSite.create();
    const client = served.client();
    const events = client.watchEvents({ cursor: '' });
    const told: WatchEventsResponse[] = [];
    const seen = Promise.withResolvers<void>();
    events.on('data', (event: WatchEventsResponse) => {
      told.push(event);
      if (event.event?.$case === 'job' && event.event.value.state === JobState.JOB_STATE_FINISHED)
        seen.resolve();
    });
    events.on('error', () => undefined);
    const { promise: begun, resolve } = Promise.withResolvers<void>();
    events.once('data', () => resolve());
    await begun;
    t.equal(told[0]?.event, undefined, 'the first response is the cursor alone');
    await served.site.world.connect().suspend(served.site.uuid);
    await served.site.world.connect().resume(served.site.uuid);
    await startBackup(client);
    await seen.promise;
    events.cancel();
    const machines = told.flatMap(({ event }) => (event?.$case === 'machine' ? [event.value] : []));
    t.match(machines[0], { machine: { uuid: served.site.uuid, name: 'm' } });

    const [, second, third] = told;
    const again = client.watchEvents({ cursor: second?.cursor ?? '' });
    const later = await gathered(again, 2);
    again.cancel();
    t.same(later[1], third, 'the next one is the one behind the cursor');

    await served.stop();
    await served.start();
    const expired = served.client().watchEvents({ cursor: second?.cursor ?? '' });
    t.same(await refusal(gathered(expired)), { code: 'CURSOR_EXPIRED', status: status.OUT_OF_RANGE });
  },
);

void t.test('host and machines are told of, and libvirt need not be there for the host', async (t) => {
  await using served = await ServedSite.create();
  await served.site.addMachine('a');
  const client = served.client();
  const { host } = await answerOf<GetHostResponse>((done) =>
    client.getHost({ view: HostView.HOST_VIEW_FULL }, done),
  );
  t.match(host, { apiLevel: 1, storages: ['near'], libvirtError: undefined });
  t.not(host?.qemuVersion, '');
  const first = await answerOf<ListMachinesResponse>((done) =>
    client.listMachines({ pageSize: 1, pageToken: '' }, done),
  );
  t.match(first.machines, [
    { machine: { name: 'a' }, state: MachineState.MACHINE_STATE_RUNNING, policy: 'default' },
  ]);
  const { nextPageToken: pageToken } = first;
  const rest = await answerOf<ListMachinesResponse>((done) =>
    client.listMachines({ pageSize: 1, pageToken }, done),
  );
  t.match(rest, { machines: [{ machine: { name: 'm' } }], nextPageToken: '' });
});

void t.test('jobs are listed page by page, the newest first', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const ids: string[] = [];
  for (const key of ['a', 'b', 'c']) {
    const { id } = firstJob(await startBackup(client, { idempotencyKey: key }));
    await watched(client, id);
    ids.unshift(id);
  }
  const listed: string[] = [];
  let pageToken = '';
  do {
    const token = pageToken;
    const page = await answerOf<ListJobsResponse>((done) =>
      client.listJobs({ pageSize: 2, pageToken: token, machine: 'm', unfinishedOnly: false }, done),
    );
    listed.push(...page.jobs.map(({ id }) => id));
    pageToken = page.nextPageToken;
  } while (pageToken !== '');
  t.same(listed, ids);
});

void t.test('a page of jobs is made of those on it, whatever else the journal remembers', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const ids: string[] = [];
  for (const key of ['a', 'b', 'c']) {
    const { id } = firstJob(await startBackup(client, { idempotencyKey: key }));
    await watched(client, id);
    ids.unshift(id);
  }
  // Who reads it cannot but notice.
  const database = new DatabaseSync(served.site.journalPath);
  database.prepare(`UPDATE jobs SET state = 'of another version' WHERE id = ?`).run(ids.at(-1) ?? '');
  database.close();
  const page = (machine: string, pageToken = '') =>
    answerOf<ListJobsResponse>((done) =>
      client.listJobs({ pageSize: 1, pageToken, machine, unfinishedOnly: false }, done),
    );
  for (const machine of ['', 'm', served.site.uuid]) {
    const { jobs, nextPageToken } = await page(machine);
    t.same(
      jobs.map(({ id }) => id),
      ids.slice(0, 1),
    );
    t.ok(nextPageToken);
  }
  const { nextPageToken } = await page('m');
  t.match(await refusal(page(served.site.uuid, nextPageToken)), { code: 'REQUEST_INVALID' });
  t.match(await refusal(page('', 'none')), { code: 'REQUEST_INVALID' });
});

void t.test(
  'a request without an id, and one of a later version, are told apart from what is not there',
  async (t) => {
    await using served = await ServedSite.create();
    const client = served.client();
    const missing = { code: 'REQUEST_INVALID' };
    t.match(await refusal(answerOf((done) => client.getJob({ id: '' }, done))), missing);
    t.match(await refusal(answerOf((done) => client.cancelJob({ id: '' }, done))), missing);
    t.match(
      await refusal(answerOf((done) => client.retryJob({ id: '', idempotencyKey: 'k' }, done))),
      missing,
    );
    t.match(await refusal(watched(client, '')), missing);
    t.match(await refusal(answerOf((done) => client.getJob({ id: randomUUID() }, done))), {
      code: 'JOB_NOT_FOUND',
    });
    t.match(await refusal(answerOf((done) => client.getHost({ view: HostView.UNRECOGNIZED }, done))), {
      code: 'REQUEST_INVALID',
    });
  },
);

void t.test('lists whose entries are too long for one answer come in more pages', async (t) => {
  await using served = await ServedSite.create();
  const client = served.client();
  const { agent, journal } = served.living;
  const long = 'x'.repeat(1_500_000);
  const pagesOf = async <Page extends { readonly nextPageToken: string }>(
    ask: (page: { pageSize: number; pageToken: string }, done: Answer<Page>) => unknown,
  ): Promise<readonly Page[]> => {
    const pages: Page[] = [];
    do {
      const pageToken = pages.at(-1)?.nextPageToken ?? '';
      pages.push(await answerOf<Page>((done) => ask({ pageSize: 0, pageToken }, done)));
    } while (pages.at(-1)?.nextPageToken !== '');
    return pages;
  };

  const backupIds: string[] = [];
  for (let backups = 0; backups < 3; backups += 1) {
    const job = await agent.run(await agent.createBackup({ machine: 'm', labels: { long } }));
    backupIds.push(agent.backupFacts(job)?.backupId ?? '');
  }
  const backups = await pagesOf<ListBackupsResponse>((page, done) =>
    client.listBackups({ ...page, machine: '', storage: '' }, done),
  );
  t.same(
    backups.map((page) => page.backups.map(({ id }) => id)),
    [backupIds.slice(0, 2), backupIds.slice(2)],
  );

  const jobIds: string[] = [];
  for (let jobs = 0; jobs < 3; jobs += 1) {
    const { id } = await agent.createBackup({ machine: 'm' });
    const error = { code: 'INTERNAL_ERROR', message: long, retryable: false };
    journal.end(id, { state: 'failed', error, holdsMachine: false });
    jobIds.unshift(id);
  }
  const jobs = await pagesOf<ListJobsResponse>((page, done) =>
    client.listJobs({ ...page, machine: '', unfinishedOnly: false }, done),
  );
  t.same(
    jobs.map((page) => page.jobs.length),
    [2, 4],
  );
  t.same(jobs.flatMap((page) => page.jobs.slice(0, 3).map(({ id }) => id)).slice(0, 3), jobIds);

  const { hypervisor } = agent.parts;
  const [machine] = await hypervisor.machines();
  const many = 'abcdefghijkl'.split('').map((letter) => ({ ...machine, name: letter.repeat(400_000) }));
  Object.assign(hypervisor, { machines: () => Promise.resolve(many) });
  const machines = await pagesOf<ListMachinesResponse>((page, done) => client.listMachines(page, done));
  t.same(
    machines.map((page) => page.machines.map((told) => told.machine?.name.slice(0, 1)).join('')),
    ['abcdefg', 'hijkl'],
  );
});

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
