import type { BackupFacts } from './facts.ts';
import type { VolumeWorld, World } from './world.ts';

/** One thing that recovery does next. After each but the last three it looks at the world again. */
export type Repair =
  /** libvirt is at work: look again later. */
  | { readonly kind: 'wait' }
  /** The vCPUs stand still because of us. */
  | { readonly kind: 'resume' }
  /** The machine stands on a chain that is not its own: it must not run. */
  | { readonly kind: 'power-off'; readonly why: string }
  /** Bring the saved machine back on the images that it had. */
  | { readonly kind: 'restore-original' }
  /** The remaining overlays take their images' places. */
  | { readonly kind: 'finish-swap' }
  /** Bring the saved machine back on its overlays. */
  | { readonly kind: 'restore-swapped' }
  /** Frozen images take their old places again; nothing was written since. */
  | { readonly kind: 'put-back' }
  /** An unflushed merge: the header names the frozen image again. */
  | { readonly kind: 'put-frozen-under' }
  /** The machine went down by a crash (its own, or ours): start it. */
  | { readonly kind: 'start-cold'; readonly why: string }
  /** Nothing of T1 is there or can be: remove what was prepared. The machine is as its owner had it. */
  | { readonly kind: 'undo' }
  /** The machine is safe; the rest of the job can be done. `valid`: what is frozen is a complete T1. */
  | { readonly kind: 'go-on'; readonly from: 'stow' | 'flush' | 'unguard'; readonly valid: boolean }
  /** Its owner has given the machine other images, complete ones, while it ran: they are his, and the job ends. */
  | { readonly kind: 'let-go'; readonly why: string }
  /** `code`: the service tries again by itself. */
  | { readonly kind: 'park'; readonly why: string; readonly code?: 'CANNOT_START_MACHINE' };

/** How often each repair was tried in this recovery. */
export type Attempts = ReadonlyMap<Repair['kind'], number>;

/** A restore is tried this often before the next way is taken. */
export const restoreAttemptsMax = 5;
/** A cold start is the last way: it is tried for half a minute. */
export const startAttemptsMax = 6;

/** So often, in two minutes and a half, a machine that stands still is told to run on. */
export const resumeAttemptsMax = 20;

/** What else a decision depends on. */
export interface Circumstances {
  readonly attempts: Attempts;
  /** The host was booted since the job began. */
  readonly rebooted: boolean;
  /** Somebody found the merged image incomplete (trap 2). */
  readonly mergeIncomplete: boolean;
}

/**
 * Decides what recovery does next: a pure function of the journal's facts and of what is really there, so that
 * every combination can be tested. The rules, in order of what they protect: a state is never restored onto
 * images that ran; a machine never runs on a cut chain; a frozen image never leaves before a flushed merge; the
 * machine ends as its owner had it.
 */
export function decideRepair(facts: BackupFacts, world: World, circumstances: Circumstances): Repair {
  if (facts.plan === undefined || facts.before === undefined || facts.undoing) return { kind: 'undo' };
  if (facts.letGo !== undefined) return { kind: 'let-go', why: facts.letGo };
  if (facts.flushed) return decideFlushed(facts, world, circumstances);
  // An undo that could not be written down: the machine had been given back.
  const isOwn = world.volumes.every((volume) => volume.image === 'undone' || volume.image === 'original');
  if (isOwn && world.volumes.some((volume) => volume.image === 'undone')) return { kind: 'undo' };
  if (world.busy) return { kind: 'wait' };
  if (world.machine === 'off' && world.status.reason === 'migrated') {
    const isUntouched = facts.resuming !== true && world.volumes.every(({ image }) => image === 'original');
    if (isUntouched) return { kind: 'undo' };
    return { kind: 'park', why: 'it was migrated to another host, where its images may be in use' };
  }
  if (world.machine === 'gone' && facts.resuming === true && world.volumes.some(isSwapped))
    return {
      kind: 'park',
      why: 'libvirt does not know it any more; where it is now, its images may be in use',
    };
  const foreign = world.volumes.find((volume) => volume.image === 'foreign');
  if (foreign !== undefined)
    return { kind: 'park', why: `somebody has put another image in the place of ${foreign.target}` };
  const missing = world.volumes.find(
    (volume) => volume.image === 'missing' || volume.image === 'without-frozen' || volume.image === 'undone',
  );
  if (missing !== undefined) {
    if (missing.image === 'missing')
      return { kind: 'park', why: `the image of ${missing.target} is not there` };
    // Before the preparation was complete there need not be one yet.
    if (facts.prepared) return { kind: 'park', why: `the frozen image of ${missing.target} is not there` };
  }
  const swapped = world.volumes.filter((volume) => volume.image === 'swapped');
  if (world.machine === 'active') return decideActive(facts, world, swapped, circumstances);
  return swapped.length === 0
    ? decideOffOriginal(facts, world, circumstances)
    : decideOffSwapped(facts, world, swapped, circumstances);
}

/** The images are complete and durable; until it is unguarded the machine is still in our care. */
function decideFlushed(facts: BackupFacts, world: World, circumstances: Circumstances): Repair {
  if (world.machine === 'active' && needsResume(facts, world)) return resumeOrPark(world, circumstances);
  const start = facts.unguarded ? undefined : coldStart(facts, world, circumstances);
  return start ?? { kind: 'go-on', from: 'unguard', valid: facts.frozenPoint === true };
}

/** True for a machine that stands still although its owner has it running. */
export function needsResume(
  facts: Pick<BackupFacts, 'vcpusHeld'> & { readonly before?: { readonly running: boolean } | undefined },
  { status }: Pick<World, 'status'>,
): boolean {
  if (status.state !== 'paused' || !facts.before?.running) return false;
  if (status.reason === 'io-error') return true;
  // Suspended by its owner in the meantime: his decision, unless it can have been us.
  return status.reason !== 'user' || facts.vcpusHeld === true;
}

function resumeOrPark(world: World, circumstances: Circumstances): Repair {
  if (tries(circumstances, 'resume') < resumeAttemptsMax) return { kind: 'resume' };
  const { state, reason } = world.status;
  return {
    kind: 'park',
    why: lockedImage(world) ?? `it does not run on, it is ${state} (${reason})`,
    code: 'CANNOT_START_MACHINE',
  };
}

function lockedImage(world: World): string | undefined {
  const locked = world.volumes.find((volume) => volume.lockedBy !== undefined);
  return locked === undefined ? undefined : `the image of ${locked.target} is held by ${locked.lockedBy}`;
}

function decideActive(
  facts: BackupFacts,
  world: World,
  swapped: readonly VolumeWorld[],
  circumstances: Circumstances,
): Repair {
  if (swapped.length === 0)
    return needsResume(facts, world) ? resumeOrPark(world, circumstances) : { kind: 'undo' };
  const strange = swapped.find((volume) => volume.header === 'on-frozen' && volume.chain !== 'expected');
  if (strange?.chain === 'without-frozen')
    return { kind: 'power-off', why: `${strange.target} runs without the data below it` };
  if (strange !== undefined && facts.resuming !== true)
    return { kind: 'power-off', why: `${strange.target} came back on an unknown chain` };
  if (strange !== undefined && isOwners(world.volumes)) {
    if (needsResume(facts, world)) return resumeOrPark(world, circumstances);
    return { kind: 'let-go', why: `${strange.target} was given other images while it ran` };
  }
  if (strange !== undefined)
    return { kind: 'park', why: `${strange.target} stands on a chain that is not known` };
  const anyMerged = swapped.some((volume) => volume.header === 'merged');
  if (circumstances.mergeIncomplete && anyMerged && world.runId !== facts.mergeRun) {
    return { kind: 'power-off', why: 'it was started on an image whose merge had been lost' };
  }
  if (needsResume(facts, world)) return resumeOrPark(world, circumstances);
  // A volume that was not swapped when somebody started the machine is not frozen: there is no common T1.
  const all = swapped.length === world.volumes.length;
  const valid = all && world.state === 'complete';
  const merged = swapped.every((volume) => volume.header === 'merged');
  return { kind: 'go-on', from: merged ? 'flush' : 'stow', valid };
}

function isSwapped({ image }: VolumeWorld): boolean {
  return image === 'swapped';
}

/** Nothing of the machine waits for a merge any more: each volume stands on images that its owner has chosen. */
function isOwners(volumes: readonly VolumeWorld[]): boolean {
  return volumes.every(
    ({ image, header, chain, ownChain }) =>
      image === 'swapped' && header === 'on-frozen' && chain === 'unknown' && ownChain === true,
  );
}

function decideOffOriginal(facts: BackupFacts, world: World, circumstances: Circumstances): Repair {
  if (world.machine === 'gone') return { kind: 'undo' };
  const ran = facts.resuming === true || world.volumes.some((volume) => volume.written);
  if (world.state === 'complete' && !ran) {
    if (tries(circumstances, 'restore-original') < restoreAttemptsMax) return { kind: 'restore-original' };
    const locked = lockedImage(world);
    if (locked !== undefined) return { kind: 'park', why: locked };
    // Nobody is in the way: it is the state that cannot be loaded.
  }
  return coldStart(facts, world, circumstances) ?? { kind: 'undo' };
}

function decideOffSwapped(
  facts: BackupFacts,
  world: World,
  swapped: readonly VolumeWorld[],
  circumstances: Circumstances,
): Repair {
  const renamed = swapped.find(({ named }) => named === false);
  if (renamed !== undefined) return decideOffRenamed(facts, world, renamed, circumstances);
  const all = swapped.length === world.volumes.length;
  const written = world.volumes.some((volume) => volume.written);
  const untouched =
    facts.resuming !== true && !written && swapped.every((volume) => volume.header === 'on-frozen');
  if (untouched && world.state === 'complete') {
    if (!all)
      return tries(circumstances, 'finish-swap') === 0 ? { kind: 'finish-swap' } : { kind: 'put-back' };
    if (world.machine === 'off' && tries(circumstances, 'restore-swapped') < restoreAttemptsMax)
      return { kind: 'restore-swapped' };
    return { kind: 'put-back' };
  }
  // No state, or one that nobody can load: the images as they were, and a cold start.
  if (untouched) return { kind: 'put-back' };
  if (swapped.some((volume) => volume.header === 'merged')) return { kind: 'put-frozen-under' };
  const valid = all && world.state === 'complete';
  return coldStart(facts, world, circumstances) ?? { kind: 'go-on', from: 'stow', valid };
}

/** Its owner has given it other images while it ran, perhaps what is frozen: that is his disk then, and no T1. */
function decideOffRenamed(
  facts: BackupFacts,
  world: World,
  { target }: VolumeWorld,
  circumstances: Circumstances,
): Repair {
  const isWhole = facts.resuming === true && world.volumes.every(({ named }) => named === false);
  if (!isWhole) return { kind: 'park', why: `its definition names another image of ${target}` };
  const why = `${target} was given other images, and it was switched off with them`;
  return coldStart(facts, world, circumstances) ?? { kind: 'let-go', why };
}

/**
 * libvirt's reasons for a machine that is off without its owner's doing; `unknown` and `daemon` are what a restart
 * of libvirtd leaves of them. Not among them: `shutdown`, `destroyed`, `migrated`, `from-snapshot`.
 */
const accidents: ReadonlySet<string> = new Set([
  'crashed',
  'failed',
  'daemon',
  'unknown',
  'saved',
  'panicked',
]);

/** True for a machine that is down although its owner had it running and did not stop it. */
export function isDownByAccident(
  facts: Pick<BackupFacts, 'poweredOff'> & {
    readonly before?: { readonly running: boolean; readonly autostart: boolean } | undefined;
  },
  status: World['status'],
  rebooted: boolean,
): boolean {
  if ((status.state !== 'shut-off' && status.state !== 'crashed') || !facts.before?.running) return false;
  if (!accidents.has(status.reason) && !(facts.poweredOff && status.reason === 'destroyed')) return false;
  // After a boot libvirt starts what is to be started: only the autostart that we cleared is ours to make good.
  return !rebooted || facts.before.autostart;
}

function coldStart(facts: BackupFacts, world: World, circumstances: Circumstances): Repair | undefined {
  if (world.machine !== 'off' || !isDownByAccident(facts, world.status, circumstances.rebooted))
    return undefined;
  if (tries(circumstances, 'start-cold') >= startAttemptsMax)
    return { kind: 'park', why: 'it cannot be started', code: 'CANNOT_START_MACHINE' };
  return { kind: 'start-cold', why: `it was ${world.status.state} (${world.status.reason})` };
}

function tries(circumstances: Circumstances, kind: Repair['kind']): number {
  return circumstances.attempts.get(kind) ?? 0;
}
