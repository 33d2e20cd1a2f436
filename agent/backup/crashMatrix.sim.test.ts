import t, { type Test } from 'tap';

import { type Crash, endure, Fate, type JobRequest, type Victim } from '../../test/sim/crashes.ts';
import { randomFrom, randomHistory } from '../../test/sim/history.ts';
import { inTurn, isMatrixExhaustive, matrixSeed, sampler } from '../../test/sim/matrix.ts';
import { removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';

/*
 * Instant restores have a matrix of their own in agent/restore/instant.sim.test.ts. What is promised after any crash is in test/sim/invariants.ts; who can die and when, in test/sim/crashes.ts.
 * The seed is fixed, so that a run can be repeated: STILLPOINT_TEST_SEED sets another, STILLPOINT_TEST_HISTORIES=N
 * makes more random histories, and with STILLPOINT_TEST_EXHAUSTIVE=1 every combination is tried instead of a sample.
 */
const seed = matrixSeed;
const isExhaustive = isMatrixExhaustive;
const histories = Number(process.env['STILLPOINT_TEST_HISTORIES'] ?? 12);
const random = randomFrom(seed);
const sample = sampler(random);

/** A QEMU that is killed has not stored its bitmaps: what follows is rightly read in full. */
const tellsOfLostBitmap = / was read in full: its bitmap cannot be used: /;

/** Every point of one kind of job, as the engine tells them: a new step is covered without anyone remembering it. */
async function pointsOf(request: JobRequest): Promise<readonly string[]> {
  await using site = await siteFor(request, { storages: ['near', 'far'] });
  const fate = new Fate(site);
  await endure(site, request, [], fate);
  return [...new Set(fate.points)];
}

/** A site in which the job can be done: what is to be restored has been backed up. */
async function siteFor(request: JobRequest, options: SiteOptions): Promise<Site> {
  const site = await Site.create(options);
  if (request === 'backup' || request === 'disk') return site;
  const { problems } = await endure(site, request === 'increment' ? 'disk' : 'backup', []);
  if (problems.length > 0) throw new Error(`the backup before: ${problems.join('; ')}`);
  for (const _ of ['after', 'T1']) await site.write();
  return site;
}

const requests: readonly JobRequest[] = [
  'backup',
  'disk',
  'increment',
  'in-place',
  'instant',
  'volumes',
  'new-machine',
  'files',
];
const points = Object.fromEntries(
  await Promise.all(requests.map(async (request) => [request, await pointsOf(request)] as const)),
);

/** The points of the windows that recoveries open, by the first crash that leads there; filled by the first test. */
const recoveries: { readonly point: string; readonly first: Crash; readonly options: SiteOptions }[] = [];

void t.test(`the points of the jobs come from the engine (seed ${seed})`, async (t) => {
  for (const request of requests) {
    const names = points[request] ?? [];
    t.comment(`${request}: ${names.join(' ')}`);
    const steps = new Set(names.flatMap((name) => /\/before:(.+)$/.exec(name)?.[1] ?? []));
    for (const step of steps)
      t.ok(
        names.some((name) => name.endsWith(`/after:${step}`)),
        `${request}/${step} has an end`,
      );
    t.ok(steps.has('cleanup') && steps.size >= 3, `${request}: all steps are there`);
  }
});

void t.test('a backup whose agent dies at any point ends with nothing lost', async (t) => {
  await inTurn(points['backup'] ?? [], async (moment) => {
    const options: SiteOptions = {
      autostart: random() < 0.5,
      ramDisk: random() < 0.5 || moment.endsWith(':stow'),
      storages: ['near', 'far'],
    };
    await tried(t, 'backup', options, [{ moment, victim: 'agent' }]);
  });
});

void t.test('a backup at any point survives the death of libvirtd, QEMU or the host', async (t) => {
  const cases = (['libvirtd', 'qemu', 'host'] as const).flatMap((victim) =>
    sample(points['backup'] ?? [], 8).map((moment) => ({ moment, victim })),
  );
  await inTurn(cases, async (crash) => {
    const options: SiteOptions = {
      autostart: true,
      ramDisk: random() < 0.5,
      targets: random() < 0.5 ? ['vda'] : ['vda', 'vdb'],
    };
    await tried(t, 'backup', options, [crash]);
  });
});

void t.test(
  'a backup of the disks alone at any point survives any death, and leaves nothing behind',
  async (t) => {
    const agents = (points['disk'] ?? []).map((moment) => ({ moment, victim: 'agent' }) as const);
    const others = (['libvirtd', 'qemu', 'host'] as const).flatMap((victim) =>
      sample(points['disk'] ?? [], 6).map((moment) => ({ moment, victim })),
    );
    await inTurn([...agents, ...others], async (crash) => {
      await tried(t, 'disk', { autostart: true, storages: ['near', 'far'] }, [crash]);
    });
  },
);

void t.test('an increment at any point survives any death, and the next one misses nothing', async (t) => {
  const agents = (points['increment'] ?? []).map((moment) => ({ moment, victim: 'agent' }) as const);
  const others = (['libvirtd', 'qemu', 'host'] as const).flatMap((victim) =>
    sample(points['increment'] ?? [], 5).map((moment) => ({ moment, victim })),
  );
  await inTurn([...agents, ...others], async (crash) => {
    await using site = await siteFor('increment', { autostart: true, storages: ['near', 'far'] });
    await triedOn(t, site, 'increment', [crash]);
    for (const _ of ['after', 'the', 'crash']) await site.write();
    // Its content is compared with what the guest wrote.
    const { problems, row } = await endure(site, 'increment', []);
    const died = crash.victim === 'qemu' || crash.victim === 'host';
    t.same(
      [problems.filter((problem) => !died || !tellsOfLostBitmap.test(problem)), row?.state],
      [[], 'finished'],
      `and the next one after ${crash.victim}@${crash.moment}`,
    );
  });
});

void t.test('an increment after a backup with a pause misses nothing, whoever dies in that', async (t) => {
  const agents = sample(points['backup'] ?? [], 3).map((moment) => ({ moment, victim: 'agent' }) as const);
  const others = (['libvirtd', 'qemu', 'host'] as const).flatMap((victim) =>
    sample(points['backup'] ?? [], 1).map((moment) => ({ moment, victim })),
  );
  await inTurn([...agents, ...others], async (crash) => {
    await using site = await siteFor('increment', { autostart: true, targets: ['vda'] });
    await triedOn(t, site, 'backup', [crash]);
    for (const _ of ['after', 'the', 'crash']) await site.write();
    const { problems, row } = await endure(site, 'increment', []);
    // One that was given up has left the machine on an image without the bitmaps of the backup before.
    const tells = problems.filter((problem) => !tellsOfLostBitmap.test(problem));
    t.same([tells, row?.state], [[], 'finished'], `the next one after ${crash.victim}@${crash.moment}`);
  });
});

void t.test('a suspended machine stays suspended, whoever dies', async (t) => {
  const window = ['save', 'swap', 'restore', 'resume', 'flush'].map((step) => `backup/after:${step}`);
  await inTurn(window, async (moment) => {
    for (const victim of isExhaustive ? (['agent', 'libvirtd'] as const) : (['agent'] as const)) {
      await tried(t, 'backup', { suspended: true, targets: ['vda'] }, [{ moment, victim }]);
    }
  });
});

void t.test('a recovery that dies itself, or whose host does, is taken up by the next one', async (t) => {
  // Recoveries that power a machine off or start it come from these.
  for (const moment of ['backup/after:save', 'backup/after:merge']) {
    for (const victim of ['agent', 'host'] as const)
      await tried(t, 'backup', { autostart: true, ramDisk: true }, [{ moment, victim }]);
  }
  const perPoint = new Map<string, (typeof recoveries)[number][]>();
  for (const one of recoveries) perPoint.set(one.point, [...(perPoint.get(one.point) ?? []), one]);
  t.ok(perPoint.size >= 6, `points of recoveries: ${[...perPoint.keys()].join(' ')}`);
  const cases = [...perPoint.values()]
    .flatMap((same) => sample(same, 1))
    .flatMap((one) => sample(['agent', 'host'] as const, 1).map((victim) => ({ ...one, victim })));
  await inTurn(cases, async ({ first, point, victim, options }) => {
    await tried(t, 'backup', { ...options, targets: ['vda'] }, [first, { moment: point, victim }]);
  });
});

void t.test('a restore whose agent dies at any point is finished or undone, whole', async (t) => {
  await inTurn(['in-place', 'volumes', 'new-machine', 'files'] as const, async (request) => {
    const site = await siteFor(request, { autostart: true, targets: ['vda'] });
    try {
      // One site for all: every restore must leave it as good as it found it.
      for (const moment of points[request] ?? [])
        await triedOn(t, site, request, [{ moment, victim: 'agent' }]);
      const others: readonly Victim[] =
        request === 'new-machine' || request === 'files'
          ? ['libvirtd', 'host']
          : ['libvirtd', 'qemu', 'host'];
      for (const victim of others) {
        for (const moment of sample(points[request] ?? [], 3))
          await triedOn(t, site, request, [{ moment, victim }]);
      }
      const changes = Array.from({ length: 40 }, (_, index) => index + 1);
      for (const nth of sample(changes, 4))
        await triedOn(t, site, request, [{ moment: 'file/*', nth, victim: 'agent' }]);
    } finally {
      await site[Symbol.asyncDispose]();
    }
  });
});

void t.test(`random histories of jobs and deaths lose nothing (seeds from ${seed})`, async (t) => {
  await inTurn(
    Array.from({ length: histories }, (_, index) => seed + index),
    async (one) => {
      t.same(await randomHistory(one), [], `history ${one}`);
    },
  );
});

t.teardown(removeSharedImages);

async function tried(
  test: Test,
  request: JobRequest,
  options: SiteOptions,
  crashes: readonly Crash[],
): Promise<void> {
  await using site = await siteFor(request, options);
  const [first] = crashes;
  const after = await triedOn(test, site, request, crashes);
  if (first === undefined || crashes.length > 1) return;
  for (const point of after) if (point.includes('/recover/')) recoveries.push({ point, first, options });
}

async function triedOn(
  test: Test,
  site: Site,
  request: JobRequest,
  crashes: readonly Crash[],
): Promise<readonly string[]> {
  const what = `${request} ${crashes.map(({ victim, moment, nth }) => `${victim}@${moment}${nth === undefined ? '' : ` ${nth}`}`).join(' ')} ${JSON.stringify(site.options)}`;
  const { problems, row, recoveryPoints } = await endure(site, request, crashes);
  test.same(problems, [], `${what} → ${row?.state ?? 'no job'} ${row?.error?.code ?? ''}`);
  await site.ownerTakesOver();
  return recoveryPoints;
}
