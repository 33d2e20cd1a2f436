import { type Crash, endure, isBackup, type JobRequest, type Victim } from './crashes.ts';
import { Site } from './site.ts';

/** Moments (calls to libvirt, changes of files, points of the engine) that a job has at most, roughly. */
const momentsMax = {
  backup: 200,
  disk: 80,
  increment: 80,
  'in-place': 70,
  'new-machine': 60,
  files: 60,
} as const;
const victims: readonly Victim[] = ['agent', 'agent', 'agent', 'libvirtd', 'qemu', 'host'];
const jobsMax = 4;

/** Numbers from 0 to 1 that a seed decides (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function chosen<T>(from: readonly T[], share: number): T {
  const value = from[Math.floor(share * from.length)];
  if (value === undefined) throw new Error('nothing to choose from');
  return value;
}

/** Runs some jobs on one site with kills at random moments; returns the first broken promises with their story. */
export async function randomHistory(seed: number): Promise<string[]> {
  const random = randomFrom(seed);
  const pick = <T>(from: readonly T[]): T => chosen(from, random());
  await using site = await Site.create({
    autostart: random() < 0.7,
    ramDisk: random() < 0.5,
    suspended: random() < 0.15,
    targets: random() < 0.6 ? ['vda', 'vdb'] : ['vda'],
    storages: pick([
      ['near'],
      ['far'],
      ['near', 'far'],
      ['far', 'near'],
      ['vault'],
      ['vault', 'near'],
    ] as const),
  });
  const story = [JSON.stringify(site.options)];
  let hasBackup = false;
  for (let job = 0; job < jobsMax; job += 1) {
    const request: JobRequest =
      hasBackup && random() < 0.6
        ? pick(['in-place', 'in-place', 'new-machine', 'files'])
        : pick(['backup', 'backup', 'disk', 'disk', 'disk']);
    const crashes = Array.from({ length: 1 + Math.floor(random() * 3) }, (_, index): Crash => {
      const span = index === 0 ? momentsMax[request] : 40;
      return { moment: '*', nth: 1 + Math.floor(random() * span), victim: pick(victims) };
    });
    story.push(`${request} ${crashes.map((crash) => `${crash.victim}@${crash.nth}`).join(' ')}`);
    const outcome = await endure(site, request, crashes);
    story.push(`→ ${outcome.row?.state} ${outcome.row?.error?.code ?? ''}`);
    if (outcome.problems.length > 0) return [...story, ...outcome.problems];
    hasBackup ||= isBackup(request) && outcome.row?.state === 'finished';
    await site.ownerTakesOver();
  }
  return [];
}
