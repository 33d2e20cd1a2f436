import { randomInt } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import t from 'tap';
import { eventually } from '../lab/eventually.ts';
import { randomFrom } from './history.ts';
import {
  descriptors,
  type MemoryFigures,
  memoryFigures,
  type ProcessFigures,
  processFigures,
  threadNames,
} from './processFigures.ts';
import { removeSharedImages } from './site.ts';
import { SoakHost } from './soakHost.ts';
import { SoakJobs } from './soakJobs.ts';

/*
 * A service at work for long: whatever its jobs come to, nothing of them stays in the process. STILLPOINT_SOAK_JOBS is a
 * longer run, STILLPOINT_SOAK_SEED the same one again.
 */

const jobsWanted = Number(process.env['STILLPOINT_SOAK_JOBS'] ?? 200);
const seed = Number(process.env['STILLPOINT_SOAK_SEED'] ?? randomInt(2 ** 31));
/** What runs at rest: loops of the service begin and end their waiting, connections go after their clients. */
const restMs = 60_000;
/** Events are gathered while somebody watches, and 4096 are kept: so many jobs it takes until they are not more. */
const eventsFilledAfter = 1000;
/** Loops that look, and wait in between, have a timer or a request of theirs more at one moment than at another. */
const resourcesSlack = 4;
/** The first of these jobs load and compile what is used first, and fill what is bounded. */
const warmShare = 1 / 3;
/**
 * What may stay in memory: so much however many jobs there are, of what is bounded and still being filled, such as the
 * warnings of the last 1000 jobs; and so much of each job. The facts of a backup are dozens of objects.
 */
const mayStay = {
  heapBytes: { once: 640 * 1024, eachJob: 1536 },
  objects: { once: 1000, eachJob: 8 },
  externalBytes: { once: 256 * 1024, eachJob: 512 },
} as const;

interface Sample extends MemoryFigures {
  readonly jobs: number;
}

/** Everything that the process makes for a while is counted: it goes into a directory that nobody else uses. */
const temporary = mkdtempSync(join(tmpdir(), 'stillpoint-soak-'));
process.env['TMPDIR'] = temporary;
t.teardown(() => rmSync(temporary, { recursive: true, force: true }));
t.teardown(removeSharedImages);
t.setTimeout(600_000 + jobsWanted * 5000);

const warnings: string[] = [];
process.on('warning', ({ name, message }) => {
  // The counting of objects itself.
  if (!message.startsWith('v8.queryObjects()')) warnings.push(`${name}: ${message}`);
});

/** By how much something grows with each job: the slope of the line through all samples. */
function growthOf(samples: readonly Sample[], of: (sample: Sample) => number): number {
  const mean = (values: readonly number[]): number =>
    values.reduce((sum, one) => sum + one, 0) / values.length;
  const jobs = mean(samples.map((sample) => sample.jobs));
  const bytes = mean(samples.map(of));
  const spread = mean(samples.map((sample) => (sample.jobs - jobs) ** 2));
  return mean(samples.map((sample) => (sample.jobs - jobs) * (of(sample) - bytes))) / spread;
}

/** Files of the host that only a job at work has, by the names of their directories. */
async function temporaryFiles({ site }: SoakHost): Promise<readonly string[]> {
  const files: string[] = [];
  for (const directory of ['state', 'run', 'ram', 'boot', 'images', 'world']) {
    const names = await readdir(join(site.directory, directory), { recursive: true });
    files.push(...names.map((name) => join(directory, name)));
  }
  const made = await readdir(temporary, { recursive: true });
  // Backups come and go there; what is beside them is unfinished.
  const stored = await readdir(join(site.directory, 'near'), { recursive: true });
  const partial = stored.filter((name) => name.includes('partial') || basename(name).startsWith('.'));
  return [...files, ...made, ...partial].toSorted();
}

/** Nothing is more than it was. */
function isLike(before: ProcessFigures, now: ProcessFigures): boolean {
  return (
    now.descriptors <= before.descriptors &&
    now.threads <= before.threads &&
    now.listeners <= before.listeners &&
    now.resources <= before.resources + resourcesSlack
  );
}

/** Waits until the process has nothing at hand, and says what it has then. */
async function atRest(host: SoakHost, before?: ProcessFigures): Promise<ProcessFigures> {
  const { engine } = host.agent.parts;
  const look = (): ProcessFigures => processFigures([host.signal, engine.stopSignal]);
  try {
    return await eventually(
      () => {
        const now = look();
        const rests = engine.atWork.length === 0 && now.children === 0;
        return rests && (before === undefined || isLike(before, now)) ? now : undefined;
      },
      { timeoutMs: restMs, intervalMs: 50 },
    );
  } catch {
    // The test says what there is too much.
    return look();
  }
}

void t.test('whatever its jobs come to, a service keeps nothing of them', async (t) => {
  t.comment(`STILLPOINT_SOAK_JOBS=${jobsWanted} STILLPOINT_SOAK_SEED=${seed}`);
  const before = processFigures([]);
  const host = await SoakHost.start();
  t.teardown(() => host[Symbol.asyncDispose]());
  const jobs = new SoakJobs(host, randomFrom(seed));
  const ended = (): number => [...host.ended.values()].reduce((sum, count) => sum + count, 0);
  const samples: Sample[] = [];
  const watched = jobsWanted * warmShare >= eventsFilledAfter;
  await jobs.round({ watched });
  const first = await atRest(host);
  const firstOpen = descriptors();
  const firstThreads = threadNames();
  const firstFiles = await temporaryFiles(host);
  // What has grown already is told soon.
  for (let now = first; ended() < jobsWanted && isLike(first, now); ) {
    await jobs.round({ watched });
    now = await atRest(host, first);
    samples.push({ jobs: ended(), ...(await memoryFigures()) });
  }
  if (!watched) await jobs.round({ watched: true });
  const last = await atRest(host, first);
  const mebibytes = (bytes: number): string => (bytes / 1024 ** 2).toFixed(1);
  for (const { jobs: count, heapBytes, objects, externalBytes, residentBytes } of samples)
    t.comment(
      `${count} jobs: ${objects} objects, heap ${mebibytes(heapBytes)} MiB, external ${mebibytes(externalBytes)} MiB, resident ${mebibytes(residentBytes)} MiB`,
    );
  t.comment([...host.ended].map(([name, count]) => `${count} ${name}`).join(', '));
  t.comment(`at rest: ${JSON.stringify(first)} and then ${JSON.stringify(last)}`);

  await t.test('it has done all that is to be done', async (t) => {
    for (const kind of ['backup finished', 'backup failed', 'backup cancelled', 'replicate finished'])
      t.ok((host.ended.get(kind) ?? 0) > 0, kind);
    t.same(host.agent.parts.journal.holding(), [], 'no job is left');
  });
  await t.test('memory stays as it is', async (t) => {
    const warm = samples.filter(({ jobs: count }) => count >= ended() * warmShare);
    const count = (warm.at(-1)?.jobs ?? 0) - (warm[0]?.jobs ?? 0);
    t.ok(count > 0, 'there are samples enough');
    t.comment(`resident: ${Math.round(growthOf(warm, ({ residentBytes }) => residentBytes))} of each job`);
    for (const what of ['heapBytes', 'objects', 'externalBytes'] as const) {
      const grown = growthOf(warm, (sample) => sample[what]);
      const bound = mayStay[what].eachJob + mayStay[what].once / count;
      t.ok(grown <= bound, `${what}: ${grown.toFixed(1)} of each job stay, where ${bound.toFixed(1)} may`);
    }
  });
  await t.test('so do descriptors, processes, threads, timers and listeners', async (t) => {
    const more = descriptors().filter((name) => !firstOpen.includes(name));
    t.ok(last.descriptors <= first.descriptors, `${last.descriptors} descriptors: ${more.join(' ')}`);
    t.equal(last.children, 0, 'processes');
    const threads = `${JSON.stringify(threadNames())} threads, ${JSON.stringify(firstThreads)} at first`;
    t.ok(last.threads <= first.threads, threads);
    t.ok(
      last.resources <= first.resources + resourcesSlack,
      `${last.resources}: ${process.getActiveResourcesInfo().join(' ')}`,
    );
    t.ok(last.listeners <= first.listeners, `${last.listeners} listeners`);
  });
  await t.test('no file is left beside what is stored', async (t) => {
    t.same(await temporaryFiles(host), firstFiles);
  });
  await t.test('nothing warns of a leak', async (t) => t.same(warnings, []));
  await t.test('and at its end nothing at all is left', async (t) => {
    await host[Symbol.asyncDispose]();
    const { children, listeners } = processFigures([]);
    t.equal(children, 0);
    t.ok(listeners <= before.listeners, `${listeners} listeners, ${before.listeners} before`);
    t.same(
      await readdir(temporary),
      (await readdir(temporary)).filter((name) => name.startsWith('stillpoint-images-')),
    );
  });
});
