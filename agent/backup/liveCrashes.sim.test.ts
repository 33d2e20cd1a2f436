import t, { type Test } from 'tap';

import { type Crash, endure, Fate, type JobRequest, strike, type Victim } from '../../test/sim/crashes.ts';
import { inTurn, sampler } from '../../test/sim/matrix.ts';
import type { Point } from '../../test/sim/faults.ts';
import { removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';

/* Mode `live` under any death, at the points of the engine and inside libvirt's long operations. */
const sample = sampler();

const both: SiteOptions = { autostart: true, ramDisk: true, storages: ['near', 'far'] };
const one: SiteOptions = { targets: ['vda'] };
const calls = [
  'createCheckpoint',
  'snapshotLive',
  'setStateDefinition',
  'commit',
  'suspend',
  'pivot',
  'resume',
].flatMap((call) => [`libvirt/before:${call}`, `libvirt/after:${call}`]);
/** A QEMU that is killed has not stored its bitmaps: what follows is rightly read in full. */
const tellsOfLostBitmap = / was read in full: its bitmap cannot be used: /;
const victims: readonly Victim[] = ['agent', 'libvirtd', 'qemu', 'host'];

async function pointsOfLive(): Promise<readonly string[]> {
  await using site = await Site.create(both);
  const fate = new Fate(site);
  const { problems } = await endure(site, 'live', [], fate);
  if (problems.length > 0) throw new Error(problems.join('; '));
  return [...new Set(fate.points)];
}

const points = await pointsOfLive();

async function tried(
  test: Test,
  options: SiteOptions,
  crashes: readonly Crash[],
): Promise<readonly string[]> {
  await using site = await Site.create(options);
  const { problems, row, recoveryPoints } = await endure(site, 'live', crashes);
  const what = crashes.map(({ victim, moment }) => `${victim}@${moment}`).join(' ');
  test.same(problems, [], `${what} → ${row?.state ?? 'no job'} ${row?.error?.code ?? ''}`);
  return recoveryPoints;
}

void t.test('the points of a live backup come from the engine', (t) => {
  for (const step of [
    'prepare',
    'checkpoint',
    'snapshot',
    'mark',
    'stow',
    'retain',
    'merge',
    'verify',
    'commit',
    'cleanup',
  ])
    t.ok(points.includes(`backup/before:${step}`) && points.includes(`backup/after:${step}`), step);
  t.end();
});

void t.test('a live backup survives the death of its agent at every point of it', async (t) => {
  await inTurn(points, (moment) => tried(t, { ...both, targets: ['vda'] }, [{ moment, victim: 'agent' }]));
});

for (const victim of ['libvirtd', 'qemu', 'host'] as const) {
  void t.test(`a live backup survives the death of ${victim} at any point of it`, async (t) => {
    const moments = [...sample(points, 4), ...sample(calls, 3)];
    await inTurn(moments, (moment) => tried(t, { ...one, autostart: true }, [{ moment, victim }]));
  });
}

void t.test('a live backup survives the death of its agent around every call to libvirt', async (t) => {
  await inTurn(sample(calls, 4), (moment) => tried(t, one, [{ moment, victim: 'agent' }]));
});

void t.test('a live backup survives any death inside a snapshot or a commit', async (t) => {
  const inside: readonly Point[] = [
    'snapshot:memory',
    'snapshot:stopped',
    'snapshot:complete',
    'commit:started',
    'commit:half',
    'commit:copied',
  ];
  const cases = inside.flatMap((point) => victims.map((victim) => ({ point, victim })));
  await inTurn(sample(cases, 8), async ({ point, victim }) => {
    await using site = await Site.create({ ...one, autostart: true });
    await dieInside(t, site, point, victim);
  });
});

async function dieInside(test: Test, site: Site, point: Point, victim: Victim): Promise<void> {
  const fate = new Fate(site);
  const gate = site.world.hold(point);
  const striking = async (): Promise<void> => {
    await gate.reached;
    fate.mark(victim);
    await strike(site, victim, fate.self);
    gate.release();
  };
  const struck = striking();
  const { problems, row } = await endure(site, 'live', [], fate);
  await struck;
  test.same(problems, [], `${victim} at ${point} → ${row?.state} ${row?.error?.code ?? ''}`);
}

void t.test('increments before, through and after a live backup miss nothing, whoever dies', async (t) => {
  const inside: readonly Point[] = ['commit:half', 'commit:copied'];
  const agents = sample(points, 4).map((moment) => ({ moment, victim: 'agent' }) as const);
  const others = (['libvirtd', 'qemu', 'host'] as const).flatMap((victim) =>
    sample([...points, ...calls], 1).map((moment) => ({ moment, victim })),
  );
  const killed = inside.map((point) => ({ moment: point, victim: 'qemu' as const }));
  await inTurn([...agents, ...others, ...killed], async (crash) => {
    await using site = await Site.create({ ...one, autostart: true });
    const go = async (request: JobRequest, crashes: readonly Crash[] = []): Promise<void> => {
      for (const _ of ['some', 'thing', 'new']) await site.write();
      const { problems, row } = await endure(site, request, crashes);
      const died = crash.victim === 'qemu' || crash.victim === 'host';
      const broken = problems.filter((problem) => !died || !tellsOfLostBitmap.test(problem));
      t.same(broken, [], `${request} of ${crash.victim}@${crash.moment} → ${row?.state}`);
    };
    await go('disk');
    const gate = inside.find((point) => point === crash.moment);
    if (gate === undefined) await go('live-increment', [crash]);
    else await dieInside(t, site, gate, crash.victim);
    await site.ownerTakesOver();
    await go('increment');
    await go('live-increment');
  });
});

void t.test('a recovery of a live backup that dies itself is taken up by the next one', async (t) => {
  await inTurn(['backup/after:snapshot', 'libvirt/after:suspend'], async (moment) => {
    const after = await tried(t, one, [{ moment, victim: 'agent' }]);
    const recoveries = after.filter((point) => point.includes('/recover/'));
    t.ok(recoveries.length > 0, 'there is something to recover');
    for (const point of sample(recoveries, 3)) {
      await tried(t, one, [
        { moment, victim: 'agent' },
        { moment: point, victim: 'agent' },
      ]);
    }
  });
});

t.teardown(removeSharedImages);
