import { randomUUID } from 'node:crypto';
import { DatabaseSync } from 'node:sqlite';
import t from 'tap';
import {
  type GetHostResponse,
  HostView,
  type ListBackupsResponse,
  type ListJobsResponse,
  type ListMachinesResponse,
  MachineState,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import {
  type Answer,
  answerOf,
  firstJob,
  refusal,
  ServedSite,
  startBackup,
  watched,
} from '../../test/sim/servedSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';

/* What there is on a simulated host, listed over a real socket. */

t.teardown(removeSharedImages);

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
