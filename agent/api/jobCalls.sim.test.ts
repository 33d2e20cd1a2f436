import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import t from 'tap';
import {
  BackupState,
  type GetBackupResponse,
  type GetJobResponse,
  type Job,
  JobHold,
  JobState,
  type ListBackupsResponse,
  type RetryJobResponse,
  type WatchEventsResponse,
  type WatchJobResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import {
  answerOf,
  firstJob,
  gathered,
  refusal,
  ServedSite,
  startBackup,
  startRequest,
  watched,
} from '../../test/sim/servedSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';
import { JobSignals } from './jobSignals.ts';
import { watchJob } from './jobWatch.ts';
import { fingerprintOf, partsOf, startRequestOf } from './startRequest.ts';

/* Jobs of a simulated host, begun and followed over a real socket. */

t.teardown(removeSharedImages);

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
