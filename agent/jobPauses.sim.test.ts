import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { createLogger } from '../common/log.ts';
import { eventually } from '../test/lab/eventually.ts';
import { jobOf } from '../test/sim/journals.ts';
import { type LivingAgent, removeSharedImages, Site, type StorageName } from '../test/sim/site.ts';
import { pauseJob, resumeJob } from './jobPauses.ts';
import type { JobRow } from './jobs/job.ts';
import { thisOwner } from './jobs/owner.ts';
import { resumeAtEnd } from './service/resumeAtEnd.ts';

t.teardown(removeSharedImages);

const hourMs = 3_600_000;
/** The owner looks twice a second; by then a job that is not held has ended. */
const longMs = 1_200;
const modes = ['disk', 'live', 'save', 'offline'] as const;
const places: readonly (readonly StorageName[])[] = [['near'], ['vault'], ['near', 'vault']];

interface Paused {
  readonly living: LivingAgent;
  readonly job: JobRow;
  readonly running: Promise<JobRow>;
}

/** A backup, or a copy, that somebody in another process has paused when it was about to move data. */
async function pausedAt(
  site: Site,
  point: string,
  create: (living: LivingAgent) => JobRow | Promise<JobRow>,
): Promise<Paused> {
  const paused = Promise.withResolvers<JobRow>();
  const other = site.openAgent();
  const living = site.openAgent(async (moment, { journal }) => {
    if (moment !== point) return;
    const [running] = journal.holding();
    paused.resolve(await pauseJob(other.journal, running?.id ?? '', hourMs));
  });
  const running = living.agent.run(await create(living));
  return { living, job: await paused.promise, running };
}

async function siteFor(mode: (typeof modes)[number], storages: readonly StorageName[]): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], storages });
  if (mode === 'offline') await site.world.connect().powerOff(site.uuid);
  return site;
}

function lastStep({ living, job }: Paused): string {
  const { name, status } = living.journal.steps(job.id).at(-1) ?? { name: 'none', status: 'none' };
  return `${name} ${status}`;
}

for (const [index, mode] of modes.entries()) {
  const storages = places[index % places.length] ?? ['near'];

  void t.test(
    `${mode}: a backup that is paused stays where it is, with its guest running, and goes on`,
    async (t) => {
      await using site = await siteFor(mode, storages);
      const paused = await pausedAt(site, 'backup/before:retain', ({ agent }) =>
        agent.createBackup({ machine: 'm', mode }),
      );
      const { living, job, running } = paused;
      t.match(job.pause, { sinceMs: Number });
      await sleep(longMs);
      t.equal(lastStep(paused), 'retain begun');
      for (const storage of living.storages.values()) t.same(await storage.list(), []);
      const { state } = site.world.machine('m').status;
      t.equal(state, mode === 'offline' ? 'shut-off' : 'running');
      if (mode !== 'offline') await site.write();
      resumeJob(site.openAgent().journal, job.id);
      t.match(await running, { state: 'finished', error: null, pause: null });
      for (const storage of living.storages.values()) {
        const [entry] = await storage.list();
        if (entry === undefined) throw new Error(`there is no backup in ${storage.name}`);
        t.match(await storage.verify(entry, { data: true }), { ok: true }, storage.name);
      }
    },
  );

  void t.test(`${mode}: a backup that is paused can be cancelled`, async (t) => {
    await using site = await siteFor(mode, storages);
    const { living, job, running } = await pausedAt(site, 'backup/before:retain', ({ agent }) =>
      agent.createBackup({ machine: 'm', mode }),
    );
    site.openAgent().journal.requestCancel(job.id);
    t.match(await running, { state: 'cancelled', pause: null });
    for (const storage of living.storages.values()) t.same(await storage.list(), []);
    t.equal(site.world.machine('m').status.state, mode === 'offline' ? 'shut-off' : 'running');
  });
}

void t.test('a copy that is paused stays where it is, and goes on', async (t) => {
  await using site = await Site.create({ targets: ['vda'], storages: ['near', 'vault'] });
  const first = site.openAgent();
  await first.agent.run(await first.agent.createBackup({ machine: 'm', mode: 'disk', storages: ['near'] }));
  const paused = await pausedAt(site, 'replicate/before:copy', ({ agent }) =>
    agent.replications.create({ name: 'm', uuid: site.uuid }, { from: 'near', to: 'vault' }),
  );
  const vault = paused.living.storages.get('vault');
  await sleep(longMs);
  t.same(await vault?.list(), []);
  resumeJob(site.openAgent().journal, paused.job.id);
  t.match(await paused.running, { state: 'finished', error: null });
  t.equal((await vault?.list())?.length, 1);
});

void t.test(
  'a backup that is to be paused while it plans is held before it reads, not before T1 is over',
  async (t) => {
    await using site = await Site.create({ targets: ['vda'] });
    const living = site.openAgent((moment, { journal }) => {
      if (moment !== 'backup/before:begin') return;
      for (const { id } of journal.holding()) journal.requestPause(id, Date.now() + hourMs);
    });
    const created = await living.agent.createBackup({ machine: 'm', mode: 'disk' });
    const running = living.agent.run(created);
    await eventually(() => living.journal.get(created.id).pause?.sinceMs != null);
    t.match(living.journal.steps(created.id).at(-1), { name: /retain|begin/ });
    t.equal(site.world.machine('m').status.state, 'running');
    resumeJob(living.journal, created.id);
    t.equal((await running).state, 'finished');
  },
);

void t.test(
  'what nobody works on, what is not paused, and what is no backup cannot be held or let go',
  async (t) => {
    await using site = await Site.create({ targets: ['vda'] });
    const { agent, journal } = site.openAgent();
    const job = await agent.createBackup({ machine: 'm', mode: 'disk' });
    t.throws(() => resumeJob(journal, job.id), { code: 'JOB_STATE_INVALID', message: /not paused/ });
    await agent.run(job);
    await t.rejects(pauseJob(journal, job.id, hourMs), {
      code: 'JOB_STATE_INVALID',
      message: /nobody works/,
    });
    t.throws(() => resumeJob(journal, job.id), { code: 'JOB_STATE_INVALID' });
    await t.rejects(pauseJob(journal, '01a1fa1b-a048', hourMs), { code: 'JOB_NOT_FOUND' });
    const about = { machineName: 'm', record: {}, owner: job.owner ?? t.fail('no owner') } as const;
    if (typeof about.owner === 'boolean') return;
    const id = '0198c0de-0000-7000-8000-000000000009';
    const { owner } = about;
    journal.create({ ...about, owner, id, kind: 'restore', machineUuid: 'n', state: 'planned' });
    await t.rejects(pauseJob(journal, id, hourMs), {
      code: 'JOB_STATE_INVALID',
      message: /cannot be paused/,
    });
  },
);

void t.test('a service that is to end lets its own jobs go on, and no others', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  const other = site.openAgent();
  const { agent, journal } = other;
  const own = await agent.createBackup({ machine: 'm', mode: 'disk' });
  const foreign = journal.create({ ...jobOf('n', { ...thisOwner(), pid: 1 }) });
  for (const { id } of [own, foreign]) journal.requestPause(id, Date.now() + hourMs);
  const stop = new AbortController();
  resumeAtEnd({ agent, log: createLogger({ level: 'silent' }), signal: stop.signal });
  t.not(journal.get(own.id).pause, null, 'not before');
  stop.abort();
  t.equal(journal.get(own.id).pause, null);
  t.not(journal.get(foreign.id).pause, null);
});
