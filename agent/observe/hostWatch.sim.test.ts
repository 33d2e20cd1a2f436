import t from 'tap';
import { HypervisorError } from '../hypervisor/errors.ts';
import { ScheduledSite } from '../../test/sim/scheduledSite.ts';
import { ms } from '../../test/sim/scheduledMachine.ts';
import { type LivingAgent, removeSharedImages, Site } from '../../test/sim/site.ts';
import type { Storage } from '../../storage/storage.ts';
import { HostWatch } from './hostWatch.ts';

t.teardown(removeSharedImages);

const minuteMs = 60_000;
const often = { storagesEveryMs: 15 * minuteMs, machinesEveryMs: minuteMs, patienceMs: 10_000 };

/** A backup of machine `m` into all storages of a site. */
async function backUp({ agent }: LivingAgent): Promise<string> {
  const job = await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' }));
  if (job.state !== 'finished') throw new Error(`the backup ended as ${job.state}: ${job.error?.message}`);
  return job.id;
}

/** Counts how often a storage of an agent is asked what it holds. */
function countLists(living: LivingAgent, name: string): () => number {
  let lists = 0;
  const storage = living.storages.get(name);
  if (storage === undefined) throw new Error(`no storage ${name}`);
  living.storages.set(
    name,
    new Proxy<Storage>(storage, {
      get: (target, key) => {
        if (key === 'list') lists += 1;
        const member: unknown = Reflect.get(target, key, target);
        return typeof member === 'function' ? member.bind(target) : member;
      },
    }),
  );
  return () => lists;
}

void t.test('a host is told whole, and the same by a process that has just begun', async (t) => {
  await using site = await Site.create({ storages: ['near', 'vault'] });
  const living = site.openAgent();
  const jobId = await backUp(living);
  const first = await new HostWatch({ agent: living.agent, ...often }).look();
  t.match(first, {
    service: { running: false },
    hypervisor: { unreachableSinceMs: null },
    jobs: [],
    machines: [{ name: 'm', state: 'running', lastRun: { jobId, state: 'finished' }, schedule: null }],
    storages: [
      { name: 'near', backups: 1, damagedBackups: 0, unusableSinceMs: null },
      { name: 'vault', backups: 1, unusableSinceMs: null },
    ],
  });
  const [machine] = first.machines;
  t.same(machine?.lastBackups.map(({ storage }) => storage).toSorted(), ['near', 'vault']);
  t.ok(machine?.lastSuccess?.steps.some(({ name }) => name === 'retain'));
  const again = await new HostWatch({ agent: site.openAgent().agent, ...often }).look();
  t.same(again.machines, first.machines);
});

void t.test('a storage that is away after a start hides no success: the journal knows it', async (t) => {
  await using site = await Site.create({ storages: ['vault'] });
  await backUp(site.openAgent());
  if (site.vault !== undefined) site.vault.fault = 'away';
  const { agent } = site.openAgent();
  const status = await new HostWatch({ agent, ...often }).look();
  t.match(status.machines, [{ lastBackups: [{ storage: 'vault', referencedBytes: null }] }]);
  t.match(status.storages, [{ name: 'vault', listedAtMs: null, problem: { code: 'STORAGE_UNREACHABLE' } }]);
  t.type(status.storages[0]?.unusableSinceMs, 'number');
});

void t.test(
  'a storage is listed now and then, and not for each look; what jobs store meanwhile counts at once',
  async (t) => {
    await using site = await Site.create({ storages: ['vault'] });
    const living = site.openAgent();
    const lists = countLists(living, 'vault');
    let nowMs = Date.now();
    const watch = new HostWatch({ agent: living.agent, ...often, now: () => nowMs });
    t.same((await watch.look()).machines[0]?.lastBackups, []);
    const jobId = await backUp(living);
    const listsOfBackup = lists();
    nowMs = Date.now();
    for (let scrape = 0; scrape < 10; scrape += 1) {
      nowMs += minuteMs;
      t.match((await watch.look()).machines, [{ lastBackups: [{ storage: 'vault' }], lastRun: { jobId } }]);
    }
    t.equal(lists(), listsOfBackup, 'ten minutes of scrapes list nothing');
    nowMs += 15 * minuteMs;
    await watch.look();
    t.equal(lists(), listsOfBackup + 1);
  },
);

void t.test('a backup that is gone from its storage is none, whatever the journal says', async (t) => {
  await using site = await Site.create();
  const living = site.openAgent();
  await backUp(living);
  const { agent } = living;
  await agent.deleteBackup(await agent.findBackup('m@latest', undefined));
  const status = await new HostWatch({ agent, ...often, now: () => Date.now() + 1000 }).look();
  t.same(status.machines[0]?.lastBackups, []);
  t.match(status.machines, [{ lastRun: { state: 'finished' } }]);
});

void t.test(
  'while libvirt is away the machines that were known stay, and those with a schedule from the start',
  async (t) => {
    await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
    await host.start();
    await host.until('2026-11-22T03:00');
    const away = new HypervisorError('HYPERVISOR_UNREACHABLE', 'away', { retryable: true });
    host.site.world.failNext('machines', away, 'before');
    const now = { now: () => host.nowMs };
    const watch = new HostWatch({ agent: host.agent, ...often, machinesEveryMs: 0, ...now });
    const started = await watch.look();
    t.match(started, {
      hypervisor: { unreachableSinceMs: ms('2026-11-22T03:00'), problem: { code: 'HYPERVISOR_UNREACHABLE' } },
      machines: [{ name: 'm', state: null, schedule: { nextMs: ms('2026-11-23T02:00'), dueSinceMs: null } }],
    });
    t.match(await watch.look(), {
      hypervisor: { unreachableSinceMs: null },
      machines: [{ state: 'running' }],
    });
  },
);

void t.test(
  'a job that was left with work, one of a dead process, and a service that lives are told apart',
  async (t) => {
    await using site = await Site.create();
    const living = site.openAgent();
    const job = await living.agent.createBackup({ machine: 'm', mode: 'disk' });
    const watch = new HostWatch({ agent: living.agent, ...often });
    t.match((await watch.look()).jobs, [{ id: job.id, hold: 'running', hint: null }]);
    living.journal.publishProgress(job.id, { jobId: job.id, state: job.state, step: 'waits' });
    t.match((await watch.look()).jobs, [{ hold: 'waiting' }]);
    site.buryOwners();
    t.match((await watch.look()).jobs, [{ hold: 'orphaned', hint: 'stillpoint agent --once' }]);
    const error = { code: 'NO_SPACE', message: 'full', retryable: true };
    living.journal.end(job.id, { state: 'failed', error, holdsMachine: true });
    t.match((await watch.look()).jobs, [
      {
        hold: 'parked',
        error,
        hint: `stillpoint job show ${job.id}; then stillpoint job retry ${job.id}, or stillpoint job cancel ${job.id}`,
      },
    ]);
  },
);

void t.test('a storage that never answers keeps nobody waiting for longer than is allowed', async (t) => {
  await using site = await Site.create();
  const living = site.openAgent();
  await backUp(living);
  const storage = living.storages.get('near');
  if (storage === undefined) throw new Error('no storage');
  const silent = new Proxy<Storage>(storage, {
    get: (target, key) =>
      key === 'check' ? () => new Promise(() => undefined) : Reflect.get(target, key, target),
  });
  living.storages.set('near', silent);
  const watch = new HostWatch({ agent: living.agent, ...often, patienceMs: 20 });
  const status = await watch.look();
  t.same(status.storages, []);
  t.same(status.unseenStorages, ['near']);
  t.match(status.machines, [{ lastBackups: [{ storage: 'near' }] }], 'and the journal tells');
});

void t.test('what went into a storage that is configured no more is no last backup', async (t) => {
  await using site = await Site.create({ storages: ['near', 'vault'] });
  const living = site.openAgent();
  await backUp(living);
  living.storages.delete('vault');
  const status = await new HostWatch({ agent: living.agent, ...often }).look();
  t.same(
    status.machines[0]?.lastBackups.map(({ storage }) => storage),
    ['near'],
  );
});

void t.test('a copy that has failed is told until it is there, by whichever job', async (t) => {
  const rule = { from: 'near', to: 'vault' };
  const policy = { storages: ['near'], replicate: [rule] };
  await using site = await Site.create({ targets: ['vda'], storages: ['near', 'vault'], policy });
  const { agent, ...living } = site.openAgent();
  const machine = { name: 'm', uuid: site.uuid };
  const look = () => new HostWatch({ agent, ...often }).look();
  await backUp({ agent, ...living });
  t.same((await look()).failedCopies, [], 'none was tried');
  if (site.vault === undefined) throw new Error('no vault');
  site.vault.fault = 'full';
  const failed = await agent.run(agent.replications.create(machine, rule));
  t.match((await look()).failedCopies, [
    { machine, ...rule, jobId: failed.id, error: { code: 'STORAGE_FULL' } },
  ]);
  site.vault.fault = null;
  t.match((await look()).failedCopies, [{ jobId: failed.id }], 'nobody has tried again');
  await agent.run(agent.replications.create(machine, rule));
  t.same((await look()).failedCopies, []);
});
