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
  if (row?.state !== 'finished') problems.push(JSON.stringify(row?.error));
  if (problems.length > 0) throw new Error(`${mode}: ${problems.join('; ')}`);
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
    const cases = placed<Pick<Crash, 'moment' | 'nth'>>([...points, ...walk(mode).changes]);
    await inTurn(cases, async ({ storages, ...crash }) => {
      await using site = await siteFor(mode, { storages });
      await triedOn(t, site, mode, [{ ...crash, victim: 'agent' }]);
    });
  });
}

async function triedOn(
  test: Test,
  site: Site,
  mode: Mode,
  crashes: readonly Crash[],
  meanwhile?: Meanwhile,
): Promise<void> {
  const fate = new Fate(site, crashes[0], meanwhile);
  const { problems, row } = await endure(site, mode, crashes, fate);
  const what = `${mode} ${crashes.map(({ victim, moment, nth }) => `${victim}@${moment} ${nth ?? ''}`).join(' ')} into ${site.storageNames.join(', ')}`;
  test.same(problems, [], `${what} → ${row?.state} ${row?.error?.code ?? ''}`);
  test.same(await waitedFor(site), [], 'a collection waits for nobody');
}

/** Collects, and gives back whom the collection had to wait for. */
async function waitedFor(site: Site): Promise<readonly string[]> {
  if (site.vault === undefined) return [];
  const { waitingFor } = await collectGarbage(await site.vault.repository(), {
    collector: { host: 'test', at: new Date().toISOString() },
    repackBelow: 1,
    onOpenSession: () => Promise.resolve('leave'),
  });
  return waitingFor.map(({ backupId }) => backupId);
}
