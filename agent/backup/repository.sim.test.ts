import t, { type Test } from 'tap';
import { type Crash, endure, Fate, type JobRequest, type Meanwhile } from '../../test/sim/crashes.ts';
import { inTurn, matrixSeed, sampler } from '../../test/sim/matrix.ts';
import { removeSharedImages, Site, type SiteOptions, type StorageName } from '../../test/sim/site.ts';
import { brokenPromises } from '../../test/sim/invariants.ts';
import type { VaultFault } from '../../test/sim/vault.ts';
import { collectGarbage } from '../../storage/repository/collection.ts';

/*
 * Backups into a repository, alone, before and after a directory, under deaths, cancels and failures of its place.
 *
 * What is the same whatever the storage is another matrix's. Here every point of the engine is walked from the first
 * one at which a storage is written to, with the storages changing from case to case, and every change of the vault
 * (`vault/…`); of the points before these only some. STILLPOINT_TEST_EXHAUSTIVE=1 walks all with all.
 */
const sample = sampler();
t.teardown(removeSharedImages);

type Mode = Extract<JobRequest, 'backup' | 'live' | 'disk' | 'offline'>;
const modes: readonly Mode[] = ['backup', 'live', 'disk', 'offline'];
const places: readonly (readonly StorageName[])[] = [['vault', 'near'], ['vault'], ['near', 'vault']];

interface Walk {
  /** Of the engine, in order. */
  readonly points: readonly string[];
  /** Changes of the vault: which one, and when it came for the how manieth time. */
  readonly changes: readonly Pick<Crash, 'moment' | 'nth'>[];
}

async function siteFor(mode: Mode, options: SiteOptions): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], autostart: mode !== 'offline', ...options });
  if (mode === 'offline') await site.world.connect().powerOff(site.uuid);
  return site;
}

async function walkOf(mode: Mode): Promise<Walk> {
  await using site = await siteFor(mode, { storages: ['vault', 'near'] });
  const times = new Map<string, number>();
  const changes: { moment: string; nth: number }[] = [];
  const fate = new Fate(site, undefined, (moment) => {
    if (!moment.startsWith('vault/')) return;
    const nth = (times.get(moment) ?? 0) + 1;
    times.set(moment, nth);
    changes.push({ moment, nth });
  });
  const { problems, row } = await endure(site, mode, [], fate);
  if (problems.length > 0 || row?.state !== 'finished')
    throw new Error(`${mode}: ${row?.state} ${row?.error?.message} ${problems.join('; ')}`);
  return { points: [...new Set(fate.points)], changes };
}

const walks = new Map<Mode, Walk>();
for (const mode of modes) walks.set(mode, await walkOf(mode));

function walk(mode: Mode): Walk {
  const found = walks.get(mode);
  if (found === undefined) throw new Error(`nobody walked ${mode}`);
  return found;
}

/** All points from the first one on at which a storage may be written to, and some of those before. */
function pointsOf(mode: Mode): readonly string[] {
  const { points } = walk(mode);
  const first = points.indexOf('backup/before:retain');
  return [...sample(points.slice(0, first), 3), ...points.slice(first)];
}

/** Gives the cases places in turn, or each case every place where all are asked for. */
function placed<T>(cases: readonly T[]): readonly (T & { readonly storages: readonly StorageName[] })[] {
  const isExhaustive = process.env['STILLPOINT_TEST_EXHAUSTIVE'] === '1';
  return cases.flatMap((one, index) =>
    (isExhaustive ? places : [places[index % places.length] ?? []]).map((storages) => ({ ...one, storages })),
  );
}

void t.test(`the points come from the engine and from the vault (seed ${matrixSeed})`, async (t) => {
  for (const mode of modes) {
    const { points, changes } = walk(mode);
    t.comment(`${mode}: ${points.length} points; ${changes.map(({ moment }) => moment).join(' ')}`);
    for (const kind of ['create sessions', 'create packs', 'create indexes', 'create manifests'])
      t.ok(
        changes.some(({ moment }) => moment === `vault/before:${kind}`),
        `${mode}: ${kind}`,
      );
    t.ok(points.includes('backup/commit/vault') && points.includes('backup/commit/near'), mode);
  }
});

for (const mode of modes) {
  void t.test(`${mode}: an agent that dies at any point leaves nothing half in a vault`, async (t) => {
    const points = pointsOf(mode).map((moment) => ({ moment }));
    const cases = placed<Pick<Crash, 'moment' | 'nth'>>([...points, ...sample(walk(mode).changes, 5)]);
    await inTurn(cases, async ({ storages, ...crash }) => {
      await using site = await siteFor(mode, { storages });
      await triedOn(t, site, mode, [{ ...crash, victim: 'agent' }]);
    });
  });
}

/** Cancels the only job at a moment, as somebody in another process would. */
function cancelAt(wanted: string): Meanwhile {
  return (moment, { journal }) => {
    if (moment !== wanted) return;
    for (const { id } of journal.holding()) journal.requestCancel(id);
  };
}

void t.test('a backup that is cancelled at any point is in all of its storages or in none', async (t) => {
  const cases = modes.flatMap((mode) => sample(pointsOf(mode), 7).map((moment) => ({ mode, moment })));
  await inTurn(placed(cases), async ({ mode, moment, storages }) => {
    await using site = await siteFor(mode, { storages });
    await triedOn(t, site, mode, [], moment);
  });
});

void t.test('nor is one that is cancelled when its agent dies', async (t) => {
  const moments = [
    'vault/after:create packs',
    'backup/after:retain',
    'backup/commit/vault',
    'backup/commit/near',
    'backup/after:commit',
  ];
  const cases = modes.flatMap((mode) => moments.map((moment) => ({ mode, moment })));
  await inTurn(cases, async ({ mode, moment }) => {
    // The one whose commit comes first stands first.
    const storages = places[moment.endsWith('near') ? 2 : 0];
    await using site = await siteFor(mode, { storages });
    await triedOn(t, site, mode, [{ moment, victim: 'agent' }], moment);
  });
});

interface Failure {
  readonly mode: Mode;
  readonly fault: VaultFault;
  /** When it begins. */
  readonly moment: string;
  readonly storages: readonly StorageName[];
}

const failsAt = [
  'backup/before:preflight',
  'backup/before:retain',
  'vault/before:create packs',
  'backup/after:retain',
  'vault/after:create manifests',
];

void t.test('a vault that is away or full for a while costs at most the backup', async (t) => {
  const cases = modes.flatMap((mode) =>
    (['away', 'full'] as const).flatMap((fault) => failsAt.map((moment) => ({ mode, fault, moment }))),
  );
  const always = cases.filter(({ fault, moment }) => fault === 'away' && moment.endsWith('create packs'));
  const others = sample(
    cases.filter((one) => !always.includes(one)),
    12,
  );
  await inTurn(placed([...always, ...others]), (one) => failing(t, one));
});

async function failing(test: Test, { mode, fault, moment: wanted, storages }: Failure): Promise<void> {
  await using site = await siteFor(mode, { storages });
  const { vault } = site;
  if (vault === undefined) throw new Error('the site has no vault');
  const { persistent: definition = '', autostart } = site.world.machine('m');
  let isOver = false;
  const { agent, life, warnings } = site.openAgent((moment) => {
    if (moment === wanted && !isOver) vault.fault = fault;
  });
  const name = mode === 'backup' ? 'save' : mode;
  const row = await life.live(async () => agent.run(await agent.createBackup({ machine: 'm', mode: name })));
  const what = `${fault} from ${wanted} on: ${mode} into ${storages.join(', ')} → ${row?.state} ${row?.error?.code ?? ''}`;
  const state = site.world.machine('m').status.state;
  test.equal(state, mode === 'offline' ? 'shut-off' : 'running', `${what}: the machine is let alone`);
  vault.fault = null;
  isOver = true;
  if (row?.holdsMachine === true) await life.live(() => agent.retry(row.id));
  const { rows } = await site.recover();
  const promised = {
    machine: mode === 'offline' ? 'off' : 'running',
    memoryKept: mode !== 'offline',
  } as const;
  const problems = await brokenPromises(site, { ...promised, autostart, definition });
  // A session that could not be ended then is told of, and ended by a collection that is told to.
  const isForgotten = warnings.some((warning) => /gathered in storage vault/.test(warning));
  const others = problems.filter((problem) => !isForgotten || !problem.startsWith('partial in vault'));
  test.same(others, [], what);
  if (isForgotten) test.equal((await waitedFor(site, 'fence')).length, 0, what);
  test.same(rows, [], 'nobody has to be recovered');
  const isDone = site.openAgent().journal.list()[0]?.state === 'finished';
  const counts = [...site.openStorages().values()].map(async (storage) => (await storage.list()).length);
  test.same(
    await Promise.all(counts),
    storages.map(() => (isDone ? 1 : 0)),
    `${what}: in all or in none`,
  );
  test.same(await waitedFor(site), [], 'a collection waits for nobody');
}

void t.test(
  'a backup that a collection has given up ends, and leaves its machine to the next one',
  async (t) => {
    await inTurn(placed(modes.map((mode) => ({ mode }))), async ({ mode, storages }) => {
      await using site = await siteFor(mode, { storages });
      const { persistent: definition = '', autostart } = site.world.machine('m');
      const request = { machine: 'm', mode: mode === 'backup' ? 'save' : mode } as const;
      const first = site.openAgent(async (moment) => {
        if (moment === 'backup/before:commit') await waitedFor(site, 'fence');
      });
      const row = await first.life.live(async () => first.agent.run(await first.agent.createBackup(request)));
      const what = `${mode} into ${storages.join(', ')}`;
      t.match(row, { state: 'failed', holdsMachine: false, error: { code: 'BACKUP_FENCED' } }, what);
      const promised = {
        machine: mode === 'offline' ? 'off' : 'running',
        memoryKept: mode !== 'offline',
      } as const;
      t.same(await brokenPromises(site, { ...promised, autostart, definition }), [], what);
      const next = site.openAgent();
      const again = await next.life.live(async () => next.agent.run(await next.agent.createBackup(request)));
      t.match(again, { state: 'finished' }, what);
      t.same(await waitedFor(site), [], 'a collection waits for nobody');
    });
  },
);

async function triedOn(
  test: Test,
  site: Site,
  mode: Mode,
  crashes: readonly Crash[],
  cancelledAt?: string,
): Promise<void> {
  const fate = new Fate(site, crashes[0], cancelledAt === undefined ? undefined : cancelAt(cancelledAt));
  const { problems, row } = await endure(site, mode, crashes, fate);
  const what = `${mode} ${crashes.map(({ victim, moment, nth }) => `${victim}@${moment} ${nth ?? ''}`).join(' ')} into ${site.storageNames.join(', ')}${cancelledAt === undefined ? '' : `, cancelled at ${cancelledAt}`}`;
  test.same(problems, [], `${what} → ${row?.state} ${row?.error?.code ?? ''}`);
  test.same(await waitedFor(site), [], 'a collection waits for nobody');
}

/** Collects, and gives back whom the collection had to wait for. */
async function waitedFor(site: Site, open: 'leave' | 'fence' = 'leave'): Promise<readonly string[]> {
  if (site.vault === undefined) return [];
  const { waitingFor } = await collectGarbage(await site.vault.repository(), {
    collector: { host: 'test', at: new Date().toISOString() },
    repackBelow: 1,
    onOpenSession: () => Promise.resolve(open),
  });
  return waitingFor.map(({ backupId }) => backupId);
}
