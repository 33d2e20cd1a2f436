import t from 'tap';
import { eventually } from '../../test/lab/eventually.ts';
import { ScheduledSite } from '../../test/sim/scheduledSite.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';

t.teardown(removeSharedImages);

void t.test(
  'another schedule is in force at once, and what it would have done before is not missed',
  async (t) => {
    await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
    await host.start();
    await host.until('2026-11-22T01:30');
    host.configure({ schedule: '0 1,3 * * *' });
    await host.refresh();
    await host.until('2026-11-22T04:00');
    t.same(host.begunSlots(), ['2026-11-22T03:00']);
  },
);

void t.test('nothing begins by a schedule that is not in force any more', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T01:59');
  await host.start();
  host.configure({ schedule: '0 5 * * *' });
  // Due by now; the machines have not been looked at again.
  host.nowMs += 2 * 60_000;
  await host.look();
  await host.refresh();
  await host.until('2026-11-22T06:00');
  t.same(host.begunSlots(), ['2026-11-22T05:00']);
  host.configure({}, { machines: [{ match: 'm', exclude: true }] });
  await host.refresh();
  await host.until('2026-11-23T06:00');
  t.equal(host.lines(/^scheduled backup/).length, 2, 'begun and succeeded, once');
  t.equal(host.agent.parts.journal.schedule(host.site.uuid), undefined, 'nothing is remembered of it');
});

void t.test('a machine gets its first schedule while the service runs', async (t) => {
  await using host = await ScheduledSite.create({}, '2026-11-22T00:30');
  await host.start();
  t.notOk(host.scheduler.isNeeded);
  host.configure({ schedule: '0 2 * * *' });
  t.ok(host.scheduler.isNeeded);
  await host.refresh();
  await host.until('2026-11-22T03:00');
  t.same(host.begunSlots(), ['2026-11-22T02:00']);
});

void t.test('those who wait begin when more are allowed at a time', async (t) => {
  const policy = { mode: 'save', schedule: '0 2 * * *' };
  const host = await ScheduledSite.create(policy, '2026-11-22T01:59', { agent: { maxParallelMachines: 1 } });
  await using _host = host;
  await host.site.addMachine('n');
  await host.start();
  const gate = host.site.world.hold('save:memory');
  host.nowMs += 60_000;
  host.begin();
  await gate.reached;
  t.equal(host.lines(/begun$/).length, 1);
  const { agent } = host.site.config();
  host.configure(policy, { agent: { ...agent, maxParallelMachines: 2 } });
  await host.scheduler.refresh();
  host.begin();
  await eventually(() => host.lines(/begun$/).length === 2);
  gate.release();
  await host.scheduler.settled();
});

void t.test('a job that runs keeps its storages; what begins afterwards has the new ones', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  const { agent } = site.openAgent((moment, self) => {
    if (moment === 'backup/before:retain') self.agent.follow({ config: site.config(), storages: new Map() });
  });
  t.match(await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })), { state: 'finished' });
  await t.rejects(agent.createBackup({ machine: 'm', mode: 'disk' }), { code: 'STORAGE_NOT_CONFIGURED' });
  agent.follow({ config: site.config(), storages: site.openStorages() });
  t.match(await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })), { state: 'finished' });
});

for (const mode of ['save', 'live'] as const)
  void t.test(`the limit of a merge that runs is changed (${mode})`, async (t) => {
    await using site = await Site.create({ targets: ['vda'], policy: { mode } });
    const { agent, storages } = site.openAgent();
    const gate = site.world.hold(mode === 'save' ? 'pull:half' : 'commit:half');
    const running = agent.run(await agent.createBackup({ machine: 'm' }));
    await gate.reached;
    const bandwidth = (): number | undefined =>
      site.world.machine('m').instance?.blockJobs.get('vda')?.progress.bandwidthBytesPerSecond;
    t.equal(bandwidth(), 0);
    const config = site.config({ merge: { bandwidthBytesPerSecond: 4096 } });
    t.same(agent.follow({ config, storages }), ['m']);
    await eventually(() => bandwidth() === 4096);
    gate.release();
    t.match(await running, { state: 'finished' });
  });

void t.test('the limit of reading that runs is changed', async (t) => {
  // It would take days.
  const policy = { mode: 'disk', read: { bandwidthBytesPerSecond: 1 } };
  await using site = await Site.create({ targets: ['vda'], policy });
  const { agent, storages, journal } = site.openAgent();
  const job = await agent.createBackup({ machine: 'm' });
  const running = agent.run(job);
  await eventually(() => (journal.progress(job.id)?.doneBytes ?? 0) > 0, { timeoutMs: 60_000 });
  agent.follow({ config: site.config({ mode: 'disk', read: { bandwidthBytesPerSecond: 0 } }), storages });
  t.match(await running, { state: 'finished' });
});
