import { tmpdir } from 'node:os';
import { credentials, Metadata, ServerCredentials, status } from '@grpc/grpc-js';
import t, { type Test } from 'tap';
import {
  AgentClient,
  type GetJobResponse,
  JobKind,
  JobState,
  type ListMachinesResponse,
  type PlanRestoreResponse,
  type RestoreSpec,
  type StartRestoreResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { answerOf, firstJob, ServedSite, startBackup, watched } from '../../test/sim/servedSite.ts';
import { removeSharedImages, type SiteOptions } from '../../test/sim/site.ts';
import { createApiServer } from './apiServer.ts';
import { detailOf } from './grpcErrors.ts';

/* Restores of a simulated host over its API. */

t.teardown(removeSharedImages);

/** A served host with a backup of `m`. */
async function backedUp(test: Test, options: SiteOptions = {}) {
  const served = await ServedSite.create(options);
  test.teardown(() => served[Symbol.asyncDispose]());
  const client = served.client();
  const { id } = firstJob(await startBackup(client));
  await watched(client, id);
  const { backup } = await answerOf<GetJobResponse>((done) => client.getJob({ id }, done));
  return { served, client, backup: backup?.id ?? '' };
}

const asNew = { $case: 'newMachine', value: { name: 'n', directory: '' } } as const;
const inPlace = { $case: 'inPlace', value: {} } as const;

function spec(backup: string, target: RestoreSpec['target']): RestoreSpec {
  return { backup, storage: '', target, start: 0, volumes: [], instant: false, networks: {} };
}

async function plan(client: AgentClient, restore: RestoreSpec) {
  const answer = await answerOf<PlanRestoreResponse>((done) => client.planRestore({ restore }, done));
  if (answer.plan === undefined) throw new Error('there is no plan');
  return answer.plan;
}

async function start(
  client: AgentClient,
  restore: RestoreSpec,
  { idempotencyKey = 'r1', acceptedConflicts = [] as string[] } = {},
) {
  const request = { idempotencyKey, restore, acceptedConflicts };
  const { job } = await answerOf<StartRestoreResponse>((done) => client.startRestore(request, done));
  if (job === undefined) throw new Error('there is no job');
  return job;
}

/** How a restore ended. */
async function stateOf(client: AgentClient, id: string): Promise<JobState | undefined> {
  await watched(client, id);
  return (await answerOf<GetJobResponse>((done) => client.getJob({ id }, done))).job?.state;
}

/** What a call was refused with. */
async function refusal(call: Promise<unknown>) {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof Error) || !('metadata' in error) || !(error.metadata instanceof Metadata))
      throw error;
    const { code, hint, message } = detailOf({ metadata: error.metadata }) ?? {};
    return { code, hint, message, status: 'code' in error ? Number(error.code) : -1 };
  }
  throw new Error('the call was not refused');
}

async function machinesOf(client: AgentClient): Promise<readonly (string | undefined)[]> {
  const { machines } = await answerOf<ListMachinesResponse>((done) =>
    client.listMachines({ pageSize: 0, pageToken: '' }, done),
  );
  return machines.map(({ machine }) => machine?.name);
}

void t.test('a backup becomes a second machine, once for each key, and is watched to its end', async (t) => {
  const { served, client, backup } = await backedUp(t);
  const restore = spec(backup, asNew);
  const planned = await plan(client, spec('m@latest', asNew));
  t.match(planned, { backupId: backup, machine: { name: 'n' }, conflicts: [] });
  t.equal(planned.paths.length, 1);
  t.same(await machinesOf(client), ['m'], 'a plan changes nothing');
  const jobs = await Promise.all(Array.from({ length: 4 }, () => start(client, restore)));
  const [job] = jobs;
  t.equal(new Set(jobs.map(({ id }) => id)).size, 1);
  t.equal(job?.kind, JobKind.JOB_KIND_RESTORE);
  const told = await watched(client, job?.id ?? '');
  const steps = told.flatMap(({ update }) => (update?.$case === 'step' ? [update.value.name] : []));
  t.ok(steps.includes('stage'), `steps: ${[...new Set(steps)].join(' ')}`);
  t.equal(await stateOf(client, job?.id ?? ''), JobState.JOB_STATE_FINISHED);
  t.same(await machinesOf(client), ['m', 'n']);
  t.match(await refusal(start(client, spec(backup, { $case: 'inPlace', value: {} }))), {
    code: 'IDEMPOTENCY_KEY_REUSED',
  });
  await served.stop();
  await served.start();
  t.equal((await start(served.client(), restore)).id, job?.id, 'also after a restart');
  t.match(served.said.join(''), /"caller":"uid \d+","pid":\d+,"msg":"restore asked for"/);
});

void t.test('nothing is replaced that the caller has not accepted', async (t) => {
  const { client, backup } = await backedUp(t);
  const restore = spec(backup, inPlace);
  const { conflicts } = await plan(client, restore);
  const kinds = [...new Set(conflicts.map(({ kind }) => kind))];
  t.ok(kinds.includes('machine') && kinds.includes('path'), kinds.join(' '));
  for (const count of [0, 1]) {
    const acceptedConflicts = kinds.slice(0, count);
    t.match(await refusal(start(client, restore, { idempotencyKey: `no-${count}`, acceptedConflicts })), {
      code: 'RESTORE_NOT_ACCEPTED',
      status: status.FAILED_PRECONDITION,
      hint: new RegExp(`accepted_conflicts ${kinds.slice(count).join(', ')}`),
    });
  }
  const job = await start(client, restore, { idempotencyKey: 'yes', acceptedConflicts: kinds });
  t.equal(await stateOf(client, job.id), JobState.JOB_STATE_FINISHED);
  t.same(await machinesOf(client), ['m']);
});

void t.test('what cannot be restored says why and what to do, and the key can be used again', async (t) => {
  const { client, backup } = await backedUp(t);
  t.match(await refusal(start(client, spec('m@latest', asNew))), { code: 'REQUEST_INVALID' });
  t.match(await refusal(start(client, spec(backup, undefined))), {
    code: 'REQUEST_INVALID',
    status: status.INVALID_ARGUMENT,
    hint: /nothing is replaced unless/,
  });
  const nobody = '01a1fa1b-a048-702f-a832-3f1deebf16d6';
  t.match(await refusal(plan(client, spec(nobody, asNew))), {
    code: 'BACKUP_NOT_FOUND',
    status: status.NOT_FOUND,
  });
  const taken = { $case: 'newMachine', value: { name: 'm', directory: '' } } as const;
  t.match(await refusal(start(client, spec(backup, taken))), { code: 'NAME_TAKEN', hint: /./ });
  t.ok((await start(client, spec(backup, taken), {}).catch(() => null)) === null, 'refused again');
  t.equal(await stateOf(client, (await start(client, spec(backup, asNew), { idempotencyKey: 'r2' })).id), 8);
});

/** Where simulated hosts are. */
const roots = ['/dev/shm', tmpdir()];

void t.test('a controller restores as far as the configuration of the host says', async (t) => {
  for (const [delegatedRestore, denied] of [
    [{}, [/may not write to/, /may not replace m/]],
    [{ directories: roots }, [null, /may not replace m/]],
    [{ directories: ['/nowhere'], inPlace: true }, [/may not write to/, /may not write to/]],
    [{ directories: roots, inPlace: true }, [null, null]],
  ] as const) {
    const { served, backup } = await backedUp(t, { agent: { delegatedRestore } });
    const server = createApiServer(served.api.context, () => ({ kind: 'controller', name: 'c1' }));
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    const client = new AgentClient(`127.0.0.1:${port}`, credentials.createInsecure());
    t.teardown(() => {
      client.close();
      server.forceShutdown();
    });
    const before = served.living.journal.list().length;
    let begun = 0;
    for (const [at, target] of [asNew, inPlace].entries()) {
      const restore = spec(backup, target);
      const message = denied[at] ?? null;
      const options = {
        idempotencyKey: `r${at}`,
        acceptedConflicts: ['machine', 'definition', 'path', 'nvram', 'volumes', 'network', 'mac'],
      };
      if (message === null) {
        const { id } = await start(client, restore, options);
        t.equal(await stateOf(client, id), JobState.JOB_STATE_FINISHED);
        begun += 1;
      } else {
        const refused = {
          code: 'RESTORE_DENIED',
          status: status.PERMISSION_DENIED,
          message,
          hint: /delegated/,
        };
        t.match(await refusal(plan(client, restore)), refused);
        t.match(await refusal(start(client, restore, options)), refused);
      }
    }
    t.equal(served.living.journal.list().length, before + begun);
  }
});

void t.test('a service that ends begins no restore', async (t) => {
  const { served, client, backup } = await backedUp(t);
  served.ask();
  t.match(await refusal(start(client, spec(backup, asNew))), { code: 'SERVICE_ENDING' });
});
