import t from 'tap';
import { ScheduledSite } from '../../test/sim/scheduledSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';
import { HypervisorError } from '../hypervisor/errors.ts';

t.teardown(removeSharedImages);

void t.test('a day has each of its runs once, and the log says when the next one is', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 */6 * * *' }, '2026-11-22T00:30');
  await host.start();
  t.match(host.lines(/^next/), [{ machine: 'm', nextAt: '2026-11-22T06:00:00.000Z' }]);
  await host.until('2026-11-23T00:30');
  const slots = ['2026-11-22T06:00', '2026-11-22T12:00', '2026-11-22T18:00', '2026-11-23T00:00'];
  t.same(host.begunSlots(), slots);
  const ends = host.lines(/^scheduled backup succeeded$/);
  t.same(
    ends.map(({ slot }) => slot?.slice(0, 16)),
    slots,
  );
  const jobs = host.agent.parts.journal.list().map(({ id }) => id);
  t.same(new Set(ends.map(({ jobId }) => jobId)), new Set(jobs), 'each with the id of its job');
  t.match(host.lines(/^next/).at(-1), { nextAt: '2026-11-23T06:00:00.000Z' });
});

void t.test('a run that fails is tried again, and is given up with a last word', async (t) => {
  await using host = await ScheduledSite.create(
    { schedule: { cron: '0 2 * * *', retries: { count: 1 } } },
    '2026-11-22T00:30',
  );
  await host.start();
  const failure = new HypervisorError('HYPERVISOR_UNREACHABLE', 'not now', { retryable: true });
  host.site.world.failNext('definition', failure, 'before');
  await host.until('2026-11-22T02:01');
  t.match(host.lines(/is tried again$/), [{ attempt: 2, nextAt: '2026-11-22T02:05:00.000Z' }]);
  host.site.world.failNext('definition', failure, 'before');
  await host.until('2026-11-22T03:00');
  t.same(host.begunSlots(), ['2026-11-22T02:00', '2026-11-22T02:00']);
  t.match(host.lines(/is not tried again$/), [
    {
      machine: 'm',
      attempts: 2,
      why: 'no-retries-left',
      nextAt: '2026-11-23T02:00:00.000Z',
      error: { code: 'HYPERVISOR_UNREACHABLE' },
    },
  ]);
  await host.until('2026-11-23T03:00');
  t.equal(host.lines(/^scheduled backup succeeded$/).length, 1, 'the next slot is run');
});

void t.test('a failure that trying again cannot help is not tried again', async (t) => {
  await using host = await ScheduledSite.create(
    { schedule: '0 2 * * *', mode: 'offline' },
    '2026-11-22T00:30',
  );
  await host.start();
  await host.until('2026-11-22T04:00');
  t.same(host.begunSlots(), ['2026-11-22T02:00']);
  t.match(host.lines(/is not tried again$/), [{ why: 'retrying-cannot-help' }]);
});

void t.test('a backup that cannot even be written down counts as an attempt', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
  await host.start();
  const failure = new HypervisorError('HYPERVISOR_UNREACHABLE', 'away', { retryable: true });
  host.site.world.failNext('findMachine', failure, 'before');
  await host.until('2026-11-22T02:01');
  t.match(host.lines(/is tried again$/), [{ jobId: null, error: { code: 'HYPERVISOR_UNREACHABLE' } }]);
  await host.until('2026-11-22T03:00');
  t.equal(host.lines(/^scheduled backup succeeded$/).length, 1);
});

void t.test('a slot that comes while the machine has an unfinished job is skipped by name', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 * * * *' }, '2026-11-22T00:30');
  await host.start();
  const { journal } = host.agent.parts;
  const job = await host.agent.createBackup({ machine: 'm' });
  await host.until('2026-11-22T01:30');
  t.match(host.lines(/skipped/), [{ machine: 'm', slot: '2026-11-22T01:00:00.000Z', jobId: job.id }]);
  t.same(host.begunSlots(), []);
  journal.requestCancel(job.id);
  await host.agent.run(job);
  await host.until('2026-11-22T02:30');
  t.same(host.begunSlots(), ['2026-11-22T02:00']);
});

void t.test('a machine that is away is not looked at, and catches up once when it is back', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
  await host.start();
  const definition = host.site.world.machine('m').persistent ?? '';
  const connection = host.site.world.connect();
  await connection.powerOff(host.site.uuid);
  await connection.undefine(host.site.uuid);
  await host.refresh();
  await host.until('2026-11-24T12:00');
  t.same(host.begunSlots(), []);
  t.equal(host.lines(/gone/).length, 1);
  await connection.define(definition);
  await connection.start(host.site.uuid);
  await host.refresh();
  t.same(host.begunSlots(), ['2026-11-24T02:00'], 'two slots, one run');
  t.match(host.lines(/begun$/), [{ why: 'missed' }]);
});

void t.test('what is remembered of a machine that has been away for long is forgotten', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
  await host.start();
  const connection = host.site.world.connect();
  await connection.powerOff(host.site.uuid);
  await connection.undefine(host.site.uuid);
  host.nowMs += 29 * 86_400_000;
  await host.refresh();
  t.equal(host.agent.parts.journal.schedules().length, 1);
  host.nowMs += 2 * 86_400_000;
  await host.refresh();
  t.equal(host.agent.parts.journal.schedules().length, 0);
});

void t.test('no more machines are backed up at a time than the configuration allows', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30', {
    agent: { maxParallelMachines: 2 },
  });
  for (const name of ['a', 'b', 'c', 'd']) await host.site.addMachine(name);
  await host.start();
  let most = 0;
  const { journal } = host.agent.parts;
  const create = journal.create.bind(journal);
  journal.create = (job) => {
    const row = create(job);
    most = Math.max(most, journal.holding().length);
    return row;
  };
  await host.until('2026-11-22T02:30');
  t.equal(most, 2);
  for (const name of ['m', 'a', 'b', 'c', 'd']) t.same(host.begunSlots(name), ['2026-11-22T02:00'], name);
  t.equal(host.lines(/waits until another one has ended/).length, 3);
  t.equal(host.lines(/^scheduled backup succeeded$/).length, 5);
});

void t.test('a service that is ending finishes what it has begun, and begins nothing', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T01:59', {
    agent: { maxParallelMachines: 1 },
  });
  await host.site.addMachine('a');
  await host.start();
  host.nowMs += 60_000;
  host.begin();
  await host.untilSaid(/^scheduled backup begun$/);
  await host.scheduler.end();
  t.equal(host.lines(/^scheduled backup begun$/).length, 1);
  t.equal(host.lines(/^scheduled backup succeeded$/).length, 1);
  await host.start();
  await host.look();
  t.equal(host.lines(/^scheduled backup succeeded$/).length, 2, 'the next service begins the other one');
});

void t.test(
  'a backup that a stop of the service gives up is done by the next service, without retries too',
  async (t) => {
    let reading: (() => void) | undefined;
    await using host = await ScheduledSite.create(
      { schedule: { cron: '0 2 * * *', retries: { count: 0 } } },
      '2026-11-22T00:30',
    );
    await host.start({
      fate: (moment) => {
        if (moment === 'backup/before:retain') reading?.();
        return false;
      },
    });
    reading = () => host.agent.parts.engine.stop();
    await host.until('2026-11-22T02:01');
    t.match(host.lines(/is tried again$/), [{ attempt: 1, error: { code: 'AGENT_STOPPED' } }]);
    t.equal(host.begunSlots().length, 1, 'nothing is begun any more');
    await host.start();
    await host.until('2026-11-22T03:00');
    t.same(host.begunSlots(), ['2026-11-22T02:00', '2026-11-22T02:00']);
    t.equal(host.lines(/^scheduled backup succeeded$/).length, 1);
  },
);

void t.test('after a backup that succeeded the rules of the policy are applied to its machine', async (t) => {
  await using host = await ScheduledSite.create(
    { schedule: '0 * * * *', keep: { last: 2 } },
    '2026-11-22T00:30',
  );
  await host.start();
  await host.until('2026-11-22T04:30');
  t.equal(host.begunSlots().length, 4);
  t.equal((await host.agent.backups.list(undefined, () => undefined)).length, 2);
  t.equal(host.lines(/^backup pruned$/).length, 2);
});

void t.test(
  'copies that the policy asks for follow a scheduled backup, and one that fails is made later',
  async (t) => {
    await using host = await ScheduledSite.create(
      {
        schedule: '0 * * * *',
        storages: ['near'],
        replicate: [{ from: 'near', to: 'vault', keep: { last: 2 } }],
      },
      '2026-11-22T00:30',
      { storages: ['near', 'vault'] },
    );
    await host.start();
    const { replications } = host.agent;
    const create = replications.create.bind(replications);
    replications.create = () => {
      replications.create = create;
      throw new Error('no');
    };
    await host.until('2026-11-22T01:30');
    t.equal(host.lines(/^copy could not be made/).length, 1);
    t.equal(host.lines(/^scheduled backup succeeded$/).length, 1, 'the backup is made all the same');
    await host.until('2026-11-22T03:30');
    t.match(host.lines(/^copy has ended$/), [
      { machine: 'm', from: 'near', to: 'vault', state: 'finished' },
      {},
    ]);
    const stored = await host.agent.backups.list(undefined, () => undefined);
    const countIn = (name: string): number => stored.filter(({ storage }) => storage === name).length;
    t.same([countIn('near'), countIn('vault')], [3, 2], 'and the copies have a retention of their own');
  },
);

void t.test('a backup for which there is no room lets the rules make some', async (t) => {
  await using host = await ScheduledSite.create(
    { schedule: { cron: '0 * * * *', retries: { count: 0 } }, keep: { last: 1 } },
    '2026-11-22T00:30',
  );
  await host.start();
  const { pruner } = host.agent;
  const run = pruner.run.bind(pruner);
  pruner.run = () => Promise.resolve();
  await host.until('2026-11-22T02:30');
  t.equal((await host.agent.backups.list(undefined, () => undefined)).length, 2);
  pruner.run = run;
  const full = new HypervisorError('NO_SPACE', 'no space', { retryable: false });
  host.site.world.failNext('definition', full, 'before');
  await host.until('2026-11-22T03:30');
  t.match(host.lines(/is not tried again$/), [{ error: { code: 'NO_SPACE' } }]);
  t.equal(host.lines(/^backup pruned$/).length, 1);
});

void t.test('a pruning that fails is told, and fails nothing', async (t) => {
  await using host = await ScheduledSite.create(
    { schedule: '0 * * * *', keep: { last: 1 } },
    '2026-11-22T00:30',
  );
  await host.start();
  host.agent.deleteBackup = () => Promise.reject(new Error('no'));
  await host.until('2026-11-22T02:30');
  t.equal(host.lines(/^backup could not be pruned$/).length, 1);
  t.equal(host.lines(/^scheduled backup succeeded$/).length, 2);
});

void t.test('a clock that is set is noticed, and what it has run does not run again', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
  await host.start();
  await host.until('2026-11-22T02:30');
  host.setClock('2026-11-22T01:30');
  await host.until('2026-11-22T03:00');
  t.match(host.lines(/^the clock was set/), [{ byMs: -3_600_000 }]);
  t.same(host.begunSlots(), ['2026-11-22T02:00']);
});

void t.test('a schedule that was changed counts from now on', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
  await host.start();
  host.nowMs += 6 * 3_600_000;
  await host.start({ policy: { schedule: '0 5 * * *' } });
  t.same(host.begunSlots(), [], 'what the new one would have done before is not missed');
  await host.until('2026-11-23T05:30');
  t.same(host.begunSlots(), ['2026-11-23T05:00']);
});

void t.test('two services on one host do not both act', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
  await host.start();
  const { journal } = host.agent.parts;
  journal.claimService = () => false;
  await host.refresh();
  await host.until('2026-11-22T03:00');
  t.same(host.begunSlots(), []);
  t.equal(host.lines(/another process is the service/).length, 1);
});
