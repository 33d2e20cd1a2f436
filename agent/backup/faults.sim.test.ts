import { rm } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';

import t from 'tap';

import { fillJournal, inTurn, isExhaustive, sample, seed } from '../../test/sim/cases.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { type Crash, endure, Fate } from '../../test/sim/crashes.ts';
import type { Operation } from '../../test/sim/faults.ts';
import { setHeaderBacking } from '../../test/sim/images.ts';
import { brokenPromises, type Promised } from '../../test/sim/invariants.ts';
import { describeRefusal, everyCall, Refusals } from '../../test/sim/refusals.ts';
import { type LivingAgent, removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { Journal } from '../jobs/journal.ts';
import { isDownByAccident } from './decide.ts';
import { repairOffline } from './offlineRepair.ts';

/*
 * Nobody dies here but where a case says so: calls fail. libvirt refuses or does not answer, the journal cannot be
 * written, a record cannot be read. With STILLPOINT_TEST_EXHAUSTIVE=1 every combination instead of a sample.
 */
t.teardown(removeSharedImages);

async function until(what: string, isTrue: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 20_000; !isTrue(); await sleep(20)) {
    if (performance.now() > deadline) throw new Error(`not within 20 s: ${what}`);
  }
}

/** What is promised of the machine when nothing is wrong with it. */
function promised(site: Site, changes: Partial<Promised> = {}): Promised {
  const { persistent, autostart } = site.world.machine('m');
  return { machine: 'running', memoryKept: true, autostart, definition: persistent ?? '', ...changes };
}

const options: SiteOptions = { autostart: true, targets: ['vda'] };
const probe = new Refusals();
const points = await (async () => {
  await using site = await Site.create(options);
  const fate = new Fate(site, undefined, probe.listen);
  await endure(site, 'backup', [], fate);
  return [...new Set(fate.points)];
})();

void t.test(
  `a backup to which libvirt refuses a call, or does not answer, loses nothing (seed ${seed})`,
  async (t) => {
    const calls = new Map([...probe.calls].filter(([operation]) => operation !== 'findMachine'));
    t.comment([...calls].map(([operation, count]) => `${operation}: ${count}`).join(', '));
    const all = everyCall(calls, isExhaustive ? 10 : 3);
    const inPause: readonly Operation[] = [
      'save',
      'restoreState',
      'resume',
      'suspend',
      'pull',
      'setAutostart',
    ];
    const often = all.filter(({ operation }) => inPause.includes(operation));
    const seldom = all.filter(({ operation }) => !inPause.includes(operation));
    await inTurn([...sample(often, 8), ...sample(seldom, 4)], async (one) => {
      await using site = await Site.create(options);
      const refusals = new Refusals([one]);
      const { problems, row } = await endure(site, 'backup', [], new Fate(site, undefined, refusals.listen));
      t.same(problems, [], `${describeRefusal(one)} → ${row?.state} ${row?.error?.code ?? ''}`);
      t.ok(refusals.failed > 0, describeRefusal(one));
    });
  },
);

const repairing: readonly Operation[] = [
  'machine',
  'machines',
  'definition',
  'job',
  'restoreState',
  'start',
  'resume',
  'suspend',
  'setAutostart',
  'pull',
  'powerOff',
];
const window = ['guard', 'save', 'swap', 'restore', 'resume', 'merge', 'flush'].map(
  (step) => `backup/after:${step}`,
);

void t.test(
  'a recovery to which libvirt refuses the next call of any kind comes to its end all the same',
  async (t) => {
    const cases = window.flatMap((moment) =>
      (['agent', 'qemu'] as const).flatMap((victim) =>
        repairing.flatMap((operation) => [1, 3].map((times) => ({ moment, victim, operation, times }))),
      ),
    );
    await inTurn(
      sample(
        cases,
        7,
        ({ moment, victim, operation, times }) =>
          `${victim} ${moment} ${operation} ${times}` === 'qemu backup/after:merge start 3',
      ),
      async ({ moment, victim, operation, times }) => {
        await using site = await Site.create(options);
        const what = `${victim}@${moment}, then ${operation} fails ${times} times`;
        const refusals = new Refusals([{ operation, nth: 1, times, how: 'refused' }]);
        if (victim === 'qemu') {
          const fate: Fate = new Fate(site, { moment, victim }, (at, self) =>
            fate.hit ? refusals.listen(at, self) : undefined,
          );
          const { problems } = await endure(site, 'backup', [{ moment, victim }], fate);
          t.same(problems, [], what);
          return;
        }
        const promise = promised(site);
        await dying(site, { moment, victim });
        await site.recover(refusals.listen);
        t.same(await brokenPromises(site, promise), [], what);
      },
    );
  },
);

/** Runs a backup into a crash of its agent. */
async function dying(site: Site, crash: Crash): Promise<void> {
  const living = site.openAgent(new Fate(site, crash).listen);
  await living.life.live(async () =>
    living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'save' })),
  );
  site.buryOwners();
}

/** Runs a backup whose journal is full from a moment on. */
async function withFullJournal(
  site: Site,
  moment: string,
): Promise<{ readonly living: LivingAgent; readonly makeRoom: () => void }> {
  let makeRoom: (() => void) | undefined;
  const fate = new Fate(site, undefined, (at, self) => {
    if (at === moment) makeRoom ??= fillJournal(self);
  });
  const living = site.openAgent(fate.listen);
  await living.life
    .live(async () => living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'save' })))
    .catch((error: unknown) => living.warnings.push(String(error)));
  return { living, makeRoom: () => makeRoom?.() };
}

void t.test(
  'a journal that is full from any moment on keeps no machine down, and the job ends when there is room',
  async (t) => {
    const cases = points.flatMap((moment) => [true, false].map((isOther) => ({ moment, isOther })));
    const chosen = sample(cases, 8, ({ moment, isOther }) => isOther && moment === 'backup/after:save');
    await inTurn(chosen, async ({ moment, isOther }) => {
      await using site = await Site.create(options);
      const promise = promised(site);
      const { living, makeRoom } = await withFullJournal(site, moment);
      t.equal(site.world.machine('m').status.state, 'running', `${moment}: it runs at once`);
      await site.write();
      makeRoom();
      if (isOther) {
        site.buryOwners();
        await site.recover();
      } else {
        await living.life.live(() => living.agent.recoverOrphans());
      }
      const what = `full from ${moment}, taken up by ${isOther ? 'another process' : 'the same one'}`;
      t.same(await brokenPromises(site, promise), [], what);
    });
  },
);

void t.test(
  'a machine that ran although the journal could not say so is never given its old memory back',
  async (t) => {
    const moments = ['before:swap', 'after:swap', 'before:restore', 'before:resume', 'after:resume'];
    await inTurn(sample(moments, 2), async (name) => {
      const moment = `backup/${name}`;
      await using site = await Site.create(options);
      const promise = promised(site, { memoryKept: false });
      await withFullJournal(site, moment);
      await site.write();
      await site.world.killQemu('m');
      site.buryOwners();
      await site.recover();
      t.same(await brokenPromises(site, promise), [], moment);
      t.equal(site.world.memorySequence('m'), 0, `${moment}: started cold`);
    });
  },
);

/** A second machine `n` on the site, running, with number 1 on its disk. */
async function addNeighbour(site: Site): Promise<string> {
  const path = site.image('vda', 'n');
  const uuid = await site.world.addMachine({ name: 'n', volumes: [{ target: 'vda', path }] });
  await site.world.startMachine('n');
  await site.world.write('n', 'vda', 1);
  return uuid;
}

async function dyingAt(site: Site, machine: string, moment: string): Promise<void> {
  const living = site.openAgent((at, self) => {
    if (at === moment) self.life.die();
  });
  await living.life.live(async () =>
    living.agent.run(await living.agent.createBackup({ machine, mode: 'save' })),
  );
}

void t.test(
  'a job that could not wait for its turn holds its machine until the next look only',
  async (t) => {
    await using site = await Site.create({ targets: ['vda'] });
    const { agent, journal } = site.openAgent();
    const job = await agent.createBackup({ machine: 'm', mode: 'disk' });
    const asked = journal.isCancelRequested.bind(journal);
    journal.isCancelRequested = () => {
      throw new Error('locked');
    };
    await t.rejects(agent.run(job), { message: 'locked' });
    journal.isCancelRequested = asked;
    t.match(await agent.recoverOrphans(), [{ id: job.id, holdsMachine: false }]);
  },
);

void t.test('a merge whose end libvirtd has missed, because it died, is completed', async (t) => {
  await using site = await Site.create({ targets: ['vda', 'vdb'] });
  const { agent } = site.openAgent();
  const gate = site.world.hold('pull:dismissed');
  const running = agent.run(await agent.createBackup({ machine: 'm', mode: 'save' }));
  await gate.reached;
  await site.world.restartLibvirtd();
  const hypervisor = site.world.connect();
  t.equal(await hypervisor.blockJob(site.uuid, 'vda'), null);
  const { path = '' } = DomainXml.parse(site.world.machine('m').persistent ?? '').volume('vda');
  t.same(
    DomainXml.parse(await hypervisor.definition(site.uuid, 'live')).liveChain('vda').length,
    2,
    'libvirt shows an image below the one that is merged',
  );
  t.equal((await readImageInfo(path, 'qcow2', { inUse: true })).backing, null);
  gate.release();
  t.match(await running, { state: 'finished', holdsMachine: false, error: null });
  t.same(DomainXml.parse(await hypervisor.definition(site.uuid, 'live')).liveChain('vda'), [path]);
});

void t.test('a merge that fails, or that the owner aborts, is not begun again by itself', async (t) => {
  for (const how of ['fails', 'aborts'] as const) {
    await using site = await Site.create({ targets: ['vda'] });
    const { agent } = site.openAgent();
    const gate = site.world.hold('pull:half');
    const running = agent.run(await agent.createBackup({ machine: 'm', mode: 'save' }));
    await gate.reached;
    const hypervisor = site.world.connect();
    if (how === 'fails') site.world.machine('m').instance?.full.add('vda');
    else await hypervisor.abortBlockJob(site.uuid, 'vda');
    gate.release();
    const row = await running;
    t.match(row, { holdsMachine: true, error: { code: 'CANNOT_MERGE_DISK_IMAGES' } }, how);
  }
});

void t.test('a machine that is down comes back although the merge of another one takes long', async (t) => {
  await using site = await Site.create(options);
  const uuid = await addNeighbour(site);
  const promise = promised(site);
  await dyingAt(site, 'n', 'backup/before:merge');
  await dyingAt(site, 'm', 'backup/after:save');
  site.buryOwners();
  t.equal(site.world.machine('m').status.state, 'shut-off');
  const gate = site.world.hold('pull:half');
  const recovering = site.recover();
  await gate.reached;
  await until('m runs', () => site.world.machine('m').status.state === 'running');
  gate.release();
  t.match((await recovering).rows, [{ state: 'finished' }, { holdsMachine: false }]);
  await site.world.connect().powerOff(uuid);
  t.same(await brokenPromises(site, promise), []);
});

void t.test('a job whose record cannot be read is parked, and hides no other', async (t) => {
  for (const record of ['{}', '{"torn":']) {
    await using site = await Site.create(options);
    await addNeighbour(site);
    await dyingAt(site, 'n', 'backup/before:merge');
    await dyingAt(site, 'm', 'backup/after:save');
    site.buryOwners();
    changeRecord(site, 'n', record);
    const { rows } = await site.recover();
    t.match(
      rows,
      [
        { machineName: 'n', holdsMachine: true, error: { code: 'JOB_RECORD_UNREADABLE' } },
        { machineName: 'm', holdsMachine: false },
      ],
      record,
    );
    t.match(site.world.machine('m').status, { state: 'running' }, record);
    t.equal(site.world.memorySequence('m'), site.lastSequence, record);
  }
});

function changeRecord(site: Site, machine: string, record: string): void {
  const database = new DatabaseSync(site.journalPath);
  database.prepare('UPDATE jobs SET record = ? WHERE machine_name = ?').run(record, machine);
  database.close();
}

void t.test(
  'before libvirt starts, one record or image that cannot be read keeps no other from being repaired',
  async (t) => {
    for (const damage of ['record', 'torn record', 'image'] as const) {
      await using site = await Site.create(options);
      await addNeighbour(site);
      await dyingAt(site, 'n', 'backup/after:merge');
      await dyingAt(site, 'm', 'backup/after:merge');
      // Their merges are not flushed: what is in the headers is lost, or worse.
      await site.crashHost();
      await setHeaderBacking(site.image('vda'), undefined);
      if (damage === 'image') await rm(site.image('vda', 'n'));
      else changeRecord(site, 'n', damage === 'record' ? '{}' : '{"torn":');
      {
        using journal = new Journal(site.journalPath);
        const repairs = await repairOffline(journal);
        t.match(
          repairs.map(({ machine, action }) => ({ machine, action })),
          [
            { machine: 'n', action: damage === 'image' ? 'missing' : 'failed' },
            { machine: 'm', action: 'frozen-image-put-back' },
          ],
          damage,
        );
      }
      t.match(
        (await readImageInfo(site.image('vda'), 'qcow2', { inUse: false })).backing,
        { format: 'qcow2' },
        damage,
      );
    }
  },
);

void t.test('only a machine that is down by accident is started again', (t) => {
  const before = { running: true, autostart: true, definitionCut: false };
  const rows: readonly (readonly [
    reason: string,
    facts: Parameters<typeof isDownByAccident>[0],
    rebooted: boolean,
    isAccident: boolean,
  ])[] = [
    ['crashed', { before }, false, true],
    ['failed', { before }, false, true],
    ['daemon', { before }, false, true],
    ['unknown', { before }, false, true],
    ['saved', { before }, false, true],
    ['panicked', { before }, false, true],
    ['shutdown', { before }, false, false],
    ['destroyed', { before }, false, false],
    ['destroyed', { before, poweredOff: true }, false, true],
    ['shutdown', { before, poweredOff: true }, false, false],
    ['migrated', { before }, false, false],
    ['from-snapshot', { before }, false, false],
    ['managed-saved', { before }, false, false],
    ['a reason of a later libvirt', { before }, false, false],
    ['crashed', {}, false, false],
    ['crashed', { before: { ...before, running: false } }, false, false],
    ['unknown', { before }, true, true],
    ['unknown', { before: { ...before, autostart: false } }, true, false],
    ['migrated', { before }, true, false],
  ];
  for (const [reason, facts, rebooted, isAccident] of rows) {
    t.equal(
      isDownByAccident(facts, { state: 'shut-off', reason }, rebooted),
      isAccident,
      `${reason} ${JSON.stringify(facts)} ${rebooted ? 'after a boot' : ''}`,
    );
  }
  for (const state of ['running', 'paused', 'pmsuspended', 'no-state', 'shutting-down'] as const) {
    t.equal(isDownByAccident({ before }, { state, reason: 'unknown' }, false), false, state);
  }
  t.end();
});
