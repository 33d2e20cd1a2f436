import { readdir } from 'node:fs/promises';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { inTurn, sample, seed } from '../../test/sim/cases.ts';
import { type Crash, endure, Fate, type Meanwhile } from '../../test/sim/crashes.ts';
import { readGuestSequences } from '../../test/sim/images.ts';
import { brokenPromises, listed, sequenceAtPointOf } from '../../test/sim/invariants.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { endServer } from './served.ts';

/* A machine that starts on its backup: who dies, and when. With STILLPOINT_TEST_EXHAUSTIVE=1 every combination. */
t.teardown(removeSharedImages);

async function backedUp(targets: readonly string[] = ['vda']): Promise<Site> {
  const site = await Site.create({ autostart: true, targets });
  const { problems } = await endure(site, 'backup', []);
  if (problems.length > 0) throw new Error(`the backup before the restore: ${problems.join('; ')}`);
  for (const _ of ['after', 'T1']) await site.write();
  return site;
}

async function siteFor(test: Test): Promise<Site> {
  const site = await backedUp();
  test.teardown(() => site[Symbol.asyncDispose]());
  return site;
}

/** The server of a machine's backup dies. */
async function killServers(site: Site): Promise<void> {
  for (const name of await readdir(site.runDirectory, { recursive: true }))
    if (name.endsWith('/vda')) await endServer(join(site.runDirectory, name));
}

async function pointsOfInstant(): Promise<readonly string[]> {
  await using site = await backedUp();
  const fate = new Fate(site);
  const { problems } = await endure(site, 'instant', [], fate);
  if (problems.length > 0) throw new Error(problems.join('; '));
  return [...new Set(fate.points)];
}

const points = await pointsOfInstant();
const afterStart = points.slice(points.indexOf('restore/after:start'));

void t.test(`an instant restore survives the death of anybody at any moment (seed ${seed})`, async (t) => {
  t.comment(points.join(' '));
  const agents = points.map((moment): Crash => ({ moment, victim: 'agent' }));
  const others = (['libvirtd', 'qemu', 'host'] as const).flatMap((victim) =>
    sample(points, 2, (moment) => moment === 'restore/after:pull').map(
      (moment): Crash => ({ moment, victim }),
    ),
  );
  const changes = sample(
    Array.from({ length: 60 }, (_, index) => index + 1),
    3,
  ).map((nth): Crash => ({ moment: 'file/*', nth, victim: 'agent' }));
  await inTurn([...agents, ...others, ...changes], async (crash) => {
    await using site = await backedUp();
    const { problems, row } = await endure(site, 'instant', [crash]);
    t.same(
      problems,
      [],
      `${crash.victim}@${crash.moment} ${crash.nth ?? ''} → ${row?.state} ${row?.error?.code ?? ''}`,
    );
  });
});

void t.test('a recovery that dies itself is taken up by the next one', async (t) => {
  const cases = sample(
    ['restore/after:start', 'restore/before:flush', 'restore/after:flush'].flatMap((moment) =>
      (['agent', 'qemu', 'host'] as const).flatMap((victim) =>
        ['restore/before:pull', 'restore/before:flush', 'restore/before:check', 'file/*'].map((again) => ({
          moment,
          victim,
          again,
        })),
      ),
    ),
    4,
  );
  await inTurn(cases, async ({ moment, victim, again }) => {
    await using site = await backedUp();
    const second: Crash = { moment: again, victim: 'agent' };
    const { problems, row } = await endure(site, 'instant', [{ moment, victim }, second]);
    t.same(problems, [], `${victim}@${moment}, agent@${again} → ${row?.state} ${row?.error?.code ?? ''}`);
  });
});

void t.test('a machine whose server dies keeps its memory and loses nothing', async (t) => {
  const moments = ['restore/before:pull', 'libvirt/before:pull', 'libvirt/after:pull', 'restore/reconnect'];
  await inTurn(moments, async (moment) => {
    await using site = await backedUp();
    let killed = 0;
    const meanwhile: Meanwhile = async (at) => {
      const isSecond = moment === 'restore/reconnect' && at === 'libvirt/after:save' && killed === 1;
      const isFirst =
        killed === 0 && (at === moment || (moment === 'restore/reconnect' && at === 'restore/before:pull'));
      if (!isFirst && !isSecond) return;
      killed += 1;
      await killServers(site);
    };
    const { problems, row } = await endure(site, 'instant', [], new Fate(site, undefined, meanwhile));
    t.same(problems, [], `${moment} → ${row?.state} ${row?.error?.code ?? ''} ${row?.error?.message ?? ''}`);
    t.ok(killed >= 1, 'it died');
  });
});

void t.test(
  'an agent that dies while it connects a machine again is followed by one that does it',
  async (t) => {
    const deaths = [
      'libvirt/before:save',
      'libvirt/after:save',
      'restore/recover/saved',
      'libvirt/before:restoreState',
      'libvirt/after:restoreState',
      'libvirt/after:resume',
    ];
    await inTurn(deaths, async (death) => {
      await using site = await backedUp();
      let isCut = false;
      let isDead = false;
      const meanwhile: Meanwhile = async (at, self) => {
        if (at === 'restore/before:pull' && !isCut) {
          isCut = true;
          await killServers(site);
        } else if (isCut && !isDead && at === death) {
          isDead = true;
          self.life.die();
        }
      };
      const { problems, row } = await endure(site, 'instant', [], new Fate(site, undefined, meanwhile));
      t.same(problems, [], `${death} → ${row?.state} ${row?.error?.code ?? ''} ${row?.error?.message ?? ''}`);
      t.ok(isDead);
    });
  },
);

void t.test('a machine that its owner switches off in between is completed as it is', async (t) => {
  const site = await siteFor(t);
  const [backup] = await listed(site);
  const atPoint = backup === undefined ? -1 : await sequenceAtPointOf(backup);
  let isOff = false;
  const living = site.openAgent(async (moment) => {
    if (moment !== 'restore/before:pull' || isOff) return;
    isOff = true;
    site.goOnFrom(atPoint);
    await site.write();
    await site.world.connect().powerOff(site.uuid);
  });
  const plan = await living.agent.planRestore({
    backup: 'm@latest',
    inPlace: true,
    instant: true,
    safetyCopy: false,
  });
  const row = await living.life.live(() => living.agent.run(living.agent.createRestore(plan)));
  t.match(row, { state: 'finished', holdsMachine: false });
  const { persistent = '' } = site.world.machine('m');
  t.same(
    await brokenPromises(site, {
      machine: 'off',
      memoryKept: false,
      autostart: true,
      definition: persistent,
    }),
    [],
  );
  t.same(
    await readGuestSequences(site.image('vda')),
    site.expected('vda', atPoint + 1),
    'with what it wrote',
  );
});

void t.test('the backup of a machine that stands on it cannot be deleted', async (t) => {
  const site = await siteFor(t);
  const refusals: unknown[] = [];
  const living = site.openAgent(async (moment) => {
    if (!afterStart.includes(moment)) return;
    const [entry] = await listed(site);
    if (entry === undefined) throw new Error('the backup is gone');
    await living.agent.deleteBackup(entry).catch((error: unknown) => refusals.push(error));
  });
  const plan = await living.agent.planRestore({ backup: 'm@latest', inPlace: true, instant: true });
  t.match(await living.life.live(() => living.agent.run(living.agent.createRestore(plan))), {
    state: 'finished',
  });
  t.equal(refusals.length, afterStart.length);
  for (const refusal of refusals) t.match(refusal, { code: 'MACHINE_BUSY' });
});
