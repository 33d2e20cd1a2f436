import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

import type { JobRow } from '../../agent/jobs/job.ts';
import { exists } from '../../common/files.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { readGuestSequences } from './images.ts';
import {
  brokenPromises,
  isSafetyCopy,
  listed,
  type Promised,
  sequenceAtPointOf,
  withFiles,
} from './invariants.ts';
import type { LivingAgent, Site } from './site.ts';

export type Victim = 'agent' | 'libvirtd' | 'qemu' | 'host';

/** Who dies at the n-th time that a moment comes (1 is the first). */
export interface Crash {
  readonly moment: string;
  readonly nth?: number | undefined;
  readonly victim: Victim;
}

export type JobRequest =
  | 'verify'
  | 'backup'
  | 'live'
  | 'live-increment'
  | 'disk'
  | 'offline'
  | 'increment'
  | 'in-place'
  | 'instant'
  | 'volumes'
  | 'new-machine'
  | 'files';

/** The guest goes on writing around what happens to it. */
const writesAt = [
  'backup/before:save',
  'backup/after:resume',
  'backup/before:flush',
  'backup/before:retain',
  'backup/before:begin',
  'backup/before:end',
  'restore/before:pull',
  'restore/before:flush',
  'restore/before:check',
  'backup/before:snapshot',
  'backup/before:mark',
  'backup/before:merge',
];
const recoveriesMax = 5;

/** Requests that make a backup. An increment is the same mode again, after a backup that went well. */
export function isBackup(request: JobRequest): boolean {
  return ['backup', 'live', 'live-increment', 'disk', 'increment', 'offline'].includes(request);
}

export type Meanwhile = (moment: string, self: LivingAgent) => Promise<void> | void;

/** Counts moments and kills at the one that a crash names. */
export class Fate {
  readonly #site: Site;
  readonly #crash: Crash | undefined;
  readonly #meanwhile: Meanwhile | undefined;
  #count = 0;
  #marked: Victim | undefined;
  #self: LivingAgent | undefined;
  /** Moments of engines (not of files or of libvirt), in order, that came after `reset`. */
  readonly points: string[] = [];
  hit = false;

  /** Who died by it. */
  get victim(): Victim | undefined {
    return this.hit ? (this.#marked ?? this.#crash?.victim) : undefined;
  }

  /** The same, before the kill. */
  pointsAtHit: readonly string[] = [];

  /** @param meanwhile what else happens at each moment, before the crash */
  constructor(site: Site, crash?: Crash, meanwhile?: Meanwhile) {
    this.#site = site;
    this.#crash = crash;
    this.#meanwhile = meanwhile;
  }

  /** The agent that is listened to. */
  get self(): LivingAgent {
    if (this.#self === undefined) throw new Error('no moment has come yet');
    return this.#self;
  }

  /** Somebody dies now, by the test's own doing. */
  mark(victim: Victim): void {
    this.#marked = victim;
    this.hit = true;
    this.pointsAtHit = [...this.points];
  }

  readonly listen = async (moment: string, self: LivingAgent): Promise<void> => {
    this.#self = self;
    if (!/^(?:file|libvirt|vault)\//.test(moment)) this.points.push(moment);
    if (moment === 'restore/before:pull') await goOnInstantly(this.#site);
    if (writesAt.includes(moment)) await this.#site.write();
    await this.#meanwhile?.(moment, self);
    if (this.#crash === undefined || this.hit || !matches(this.#crash.moment, moment)) return;
    this.#count += 1;
    if (this.#count < (this.#crash.nth ?? 1)) return;
    this.hit = true;
    this.pointsAtHit = [...this.points, ...(this.points.at(-1) === moment ? [] : [moment])];
    await strike(this.#site, this.#crash.victim, self);
  };
}

/** Sites whose guest runs on the backup that it is restored from, and has written since. */
const goneOn = new WeakSet<Site>();

async function goOnInstantly(site: Site): Promise<void> {
  if (goneOn.has(site)) return;
  goneOn.add(site);
  site.goOnFrom(await sequenceAtPoint(site));
}

/** `file/*` and `*` name any moment of that kind. */
function matches(pattern: string, moment: string): boolean {
  return (
    pattern === moment ||
    pattern === '*' ||
    (pattern.endsWith('/*') && moment.startsWith(pattern.slice(0, -1)))
  );
}

/** Lets somebody die. */
export async function strike(site: Site, victim: Victim, self: LivingAgent): Promise<void> {
  if (victim === 'agent') self.life.die();
  if (victim === 'libvirtd') await site.world.restartLibvirtd();
  if (victim === 'qemu' && site.world.machine('m').instance !== undefined) await site.world.killQemu('m');
  if (victim === 'host') {
    self.life.die();
    await site.crashHost();
  }
}

/** What came of a job and its crashes. */
export interface Outcome {
  readonly problems: readonly string[];
  /** Points of the first recovery, for a second crash there. */
  readonly recoveryPoints: readonly string[];
  /** The first crash came to pass. */
  readonly hit: boolean;
  readonly row: JobRow | undefined;
}

/** Runs one job on a site with up to two crashes, recovers, and compares the site with what is promised. */
export async function endure(
  site: Site,
  request: JobRequest,
  crashes: readonly Crash[],
  fate = new Fate(site, crashes[0]),
): Promise<Outcome> {
  const machine = site.world.machine('m');
  const before = {
    definition: machine.persistent ?? '',
    autostart: machine.autostart,
    sequence: site.lastSequence,
    backups: (await listed(site)).length,
  };
  const later = crashes.slice(1);
  const living = site.openAgent(fate.listen);
  let jobId: string | undefined;
  await living.life.live(async () => {
    const job = await create(living, site, request);
    jobId = job.id;
    await living.agent.run(job);
  });
  const recoveryPoints: string[] = [];
  const fates = [fate];
  for (let dead = living, attempt = 0; dead.life.isDead; attempt += 1) {
    if (attempt > recoveriesMax) throw new Error('the recoveries do not come to an end');
    if (struck(site)) await site.bootHost();
    else site.buryOwners();
    const next = new Fate(site, later[attempt]);
    fates.push(next);
    dead = await site.recover(next.listen);
    if (attempt === 0) recoveryPoints.push(...next.points);
  }
  const rows = site.openAgent().journal.list();
  const row = rows.find(({ id }) => id === jobId);
  const problems = await judge(site, {
    request,
    victims: fates.flatMap((one) => one.victim ?? []),
    pointsAtHit: fate.pointsAtHit,
    before,
    row,
  });
  return { problems, recoveryPoints, hit: fate.hit, row };
}

function struck(site: Site): boolean {
  return !site.world.isUp;
}

async function create(living: LivingAgent, site: Site, request: JobRequest): Promise<JobRow> {
  if (request === 'backup') return living.agent.createBackup({ machine: 'm', mode: 'save' });
  if (request === 'live' || request === 'live-increment')
    return living.agent.createBackup({ machine: 'm', mode: 'live' });
  if (request === 'disk' || request === 'increment')
    return living.agent.createBackup({ machine: 'm', mode: 'disk' });
  if (request === 'offline') return living.agent.createBackup({ machine: 'm', mode: 'offline' });
  if (request === 'verify') {
    const entry = await living.agent.backups.find('m@latest');
    return living.agent.createBoot(await living.agent.planBoot(entry, { expect: 'never', deadlineMs: 1 }));
  }
  const how = {
    'in-place': { inPlace: true },
    instant: { inPlace: true, instant: true },
    volumes: { inPlace: true, volumes: site.targets },
    'new-machine': { as: 'n' },
    files: { to: site.filesDirectory },
  }[request];
  return living.agent.createRestore(await living.agent.planRestore({ backup: 'm@latest', ...how }));
}

/** A restore over the machine as it is. */
function isOverPresent(request: JobRequest): boolean {
  return request === 'in-place' || request === 'instant' || request === 'volumes';
}

interface Case {
  readonly request: JobRequest;
  /** Who really died. */
  readonly victims: readonly Victim[];
  readonly pointsAtHit: readonly string[];
  readonly before: {
    readonly definition: string;
    readonly autostart: boolean;
    readonly sequence: number;
    readonly backups: number;
  };
  readonly row: JobRow | undefined;
}

async function judge(site: Site, { request, victims, pointsAtHit, before, row }: Case): Promise<string[]> {
  const isFinished = row?.state === 'finished';
  const cold = victims.includes('qemu') || victims.includes('host');
  const isOver = isOverPresent(request);
  const safetyProblems = isOver ? await judgeSafetyCopies(site, request, isFinished, before.sequence) : [];
  if (isOver && isFinished && !goneOn.delete(site)) site.goOnFrom(await sequenceAtPoint(site));
  const booted = isOver && (request === 'volumes' || !(await hasMemory(site)));
  const rolledBack = isOver && !isFinished;
  const problems = await brokenPromises(site, {
    machine: promisedState(site, request, victims, pointsAtHit),
    memoryKept: !cold && !rolledBack && !booted && request !== 'offline',
    ...before,
  });
  problems.push(...safetyProblems);
  const made = (await listed(site)).length - before.backups;
  const promisedBackups = isBackup(request) && isFinished ? site.storageNames.length : 0;
  if (made !== promisedBackups)
    problems.push(
      `${made} backups instead of ${promisedBackups} (job ${row?.state}: ${row?.error?.message})`,
    );
  const isIncrement = request === 'increment' || request === 'live-increment';
  if (isIncrement && isFinished && !cold) problems.push(...(await judgeIncrements(site)));
  if (victims.every((victim) => victim === 'agent')) problems.push(...(await judgeCheckpoints(site)));
  if (request === 'new-machine') problems.push(...(await judgeCopy(site, isFinished)));
  if (request === 'files') problems.push(...(await judgeFiles(site, isFinished)));
  return problems;
}

function promisedState(
  site: Site,
  request: JobRequest,
  victims: readonly Victim[],
  pointsAtHit: readonly string[],
): Promised['machine'] {
  if (request === 'offline') return victims.includes('host') ? 'either' : 'off';
  if (victims.includes('host') && (site.options.suspended || victims.includes('qemu'))) return 'either';
  if (victims.includes('host')) return site.world.machine('m').autostart ? 'running' : 'either';
  if (site.options.suspended) return victims.includes('qemu') ? 'either' : 'suspended';
  if (!victims.includes('qemu')) return 'running';
  // A QEMU that dies outside of the window in which the machine is in our care stays as it is.
  const windows: Partial<Record<JobRequest, readonly [taken: string, given: string]>> = {
    backup: ['backup/after:guard', 'backup/before:unguard'],
    live: ['backup/before:snapshot', 'backup/before:verify'],
    'live-increment': ['backup/before:snapshot', 'backup/before:verify'],
  };
  const [taken, given] = isOverPresent(request)
    ? ['restore/after:stop', 'restore/before:start']
    : (windows[request] ?? []);
  if (taken === undefined || given === undefined) return 'either';
  const isOurs = pointsAtHit.includes(taken) && !pointsAtHit.slice(0, -1).includes(given);
  return isOurs && victims.length === 1 ? 'running' : 'either';
}

/** What could be an increment is one: nothing died that its bitmaps were in. */
async function judgeIncrements(site: Site): Promise<string[]> {
  const newest = await newestBackup(site);
  return (newest?.manifest?.volumes ?? [])
    .filter(({ read }) => read !== 'increment')
    .map(({ target, reason }) => `${target} was read in full: ${reason}`);
}

/** Every checkpoint that is left is the one that a storage's next increment starts from. */
async function judgeCheckpoints(site: Site): Promise<string[]> {
  const { checkpoints } = site.world.machine('m');
  const named = (await listed(site)).map(({ manifest }) => manifest?.checkpoint);
  const strays = checkpoints
    .filter((name) => !named.includes(name))
    .map((name) => `stray checkpoint ${name}`);
  const most = site.storageNames.length;
  return checkpoints.length > most ? [...strays, `${checkpoints.length} checkpoints`] : strays;
}

/** The backup that `m@latest` names. */
async function newestBackup(site: Site): Promise<BackupEntry | undefined> {
  return (await listed(site)).toSorted((a, b) => a.pointInTime.localeCompare(b.pointInTime)).at(-1);
}

async function sequenceAtPoint(site: Site): Promise<number> {
  const newest = await newestBackup(site);
  return newest === undefined ? -1 : withFiles(site, newest, sequenceAtPointOf);
}

async function hasMemory(site: Site): Promise<boolean> {
  return (await newestBackup(site))?.manifest?.memory !== undefined;
}

/** What a finished restore has replaced is kept whole; one that was undone keeps nothing. Removed for the next case. */
async function judgeSafetyCopies(
  site: Site,
  request: JobRequest,
  isFinished: boolean,
  sequence: number,
): Promise<string[]> {
  const directory = join(site.directory, 'images');
  const found = (await readdir(directory)).filter(isSafetyCopy).toSorted();
  const replaced = [
    ...site.targets.map((target) => `m-${target}.qcow2`),
    ...(request === 'volumes' ? [] : ['m.xml']),
  ];
  const wanted = isFinished ? replaced : [];
  const problems: string[] = [];
  if (String(found.map((name) => name.replace(/\.replaced-.*/, ''))) !== String(wanted))
    problems.push(`kept of what was replaced: ${found.join()} instead of ${wanted.join()}`);
  for (const target of site.targets) {
    const copy = found.find((name) => name.startsWith(`m-${target}.qcow2`));
    if (copy === undefined) continue;
    const numbers = String(await readGuestSequences(join(directory, copy)));
    const before = String(site.expected(target, sequence));
    if (numbers !== before) problems.push(`${copy} has ${numbers} instead of ${before}`);
  }
  for (const name of found) await rm(join(directory, name));
  return problems;
}

/** The second machine is there whole, or not at all; it is taken away so that the next case finds none. */
async function judgeCopy(site: Site, isFinished: boolean): Promise<string[]> {
  const problems: string[] = [];
  const images = site.targets.map((target) => site.image(target, 'n'));
  const found = await Promise.all(images.map(exists));
  const connection = site.world.connect();
  const copy = (await connection.machines()).find(({ name }) => name === 'n');
  if (!isFinished) {
    if (copy !== undefined) problems.push('the copy of a failed restore is defined');
    if (found.includes(true)) problems.push('images of a failed restore are left');
  } else if (copy === undefined) {
    problems.push('the copy is not there');
  } else {
    const atPoint = await sequenceAtPoint(site);
    for (const [index, image] of images.entries()) {
      const wanted = String(site.expected(site.targets[index] ?? '', atPoint));
      const numbers = String(await readGuestSequences(image));
      if (numbers !== wanted) problems.push(`${image} has ${numbers} instead of ${wanted}`);
    }
    const resumed = copy.status.state === 'running' && (await hasMemory(site));
    if (resumed && site.world.memorySequence('n') !== atPoint)
      problems.push('the copy does not go on from T1');
    if (copy.status.state === 'paused' && !site.options.suspended)
      problems.push(`the copy is paused (${copy.status.reason})`);
  }
  if (copy !== undefined) {
    if (copy.status.state !== 'shut-off') await connection.powerOff(copy.uuid);
    await connection.undefine(copy.uuid);
  }
  for (const image of images) await rm(image, { force: true });
  return problems;
}

async function judgeFiles(site: Site, isFinished: boolean): Promise<string[]> {
  const directory = site.filesDirectory;
  const found = (await exists(directory)) ? (await readdir(directory)).toSorted() : [];
  const wanted = isFinished
    ? [
        ...site.targets.map((target) => `m-${target}.qcow2`),
        ...((await hasMemory(site)) ? ['m.state'] : []),
        'm.xml',
      ].toSorted()
    : [];
  await rm(directory, { recursive: true, force: true });
  return String(found) === String(wanted) ? [] : [`files: ${found.join()} instead of ${wanted.join()}`];
}
