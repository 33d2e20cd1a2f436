import {
  type Circumstances,
  isDownByAccident,
  needsResume,
  resumeAttemptsMax,
  startAttemptsMax,
} from './decide.ts';
import type { LiveFacts } from './liveFacts.ts';
import type { LiveVolumeWorld, LiveWorld } from './liveWorld.ts';

/** One thing that recovery does next. After each but the last three it looks at the world again. */
export type LiveRepair =
  /** libvirt is at work: look again later. */
  | { readonly kind: 'wait' }
  /** Our own snapshot still writes memory, and nobody waits for it. */
  | { readonly kind: 'abort-snapshot' }
  /** The vCPUs stand still because of us. */
  | { readonly kind: 'resume' }
  /** A libvirtd that died in a pivot has forgotten the machine's QEMU, whose vCPUs we had stopped. */
  | { readonly kind: 'end-forgotten'; readonly pid: number }
  /** The next start would not use what the machine wrote last. */
  | {
      readonly kind: 'name-images';
      readonly targets: readonly string[];
      readonly onOverlays: boolean;
      /** Whether the images are still T1 cannot be told. */
      readonly giveUp: boolean;
    }
  /** The machine went down by a crash: start it. */
  | { readonly kind: 'start-cold'; readonly why: string }
  /** The machine is on its images, and there is no T1: remove what was prepared. */
  | { readonly kind: 'undo' }
  /** `giveUp`: what is frozen is not a complete T1. */
  | { readonly kind: 'go-on'; readonly from: LiveStepName; readonly giveUp: boolean }
  /** `code`: the service tries again by itself. */
  | { readonly kind: 'park'; readonly why: string; readonly code?: 'CANNOT_START_MACHINE' };

/** The steps at which recovery goes on. */
export type LiveStepName = 'mark' | 'stow' | 'merge' | 'verify' | 'commit' | 'drop' | 'cleanup';

export type LiveCircumstances = Pick<Circumstances, 'rebooted'> & {
  readonly attempts: ReadonlyMap<LiveRepair['kind'], number>;
};

/**
 * Decides what recovery of a `live` backup does next: a pure function of the journal's facts and of what is really
 * there. The rules, in order of what they protect: an overlay that holds what the guest wrote never goes before it
 * is merged, and the next start uses it; a point in time is kept only while nothing can have written to its images;
 * the machine ends as its owner had it.
 */
export function decideLive(facts: LiveFacts, world: LiveWorld, circumstances: LiveCircumstances): LiveRepair {
  if (facts.plan === undefined || facts.snapshotBegun !== true || facts.undoing) return { kind: 'undo' };
  if (facts.committed) return { kind: 'go-on', from: 'cleanup', giveUp: false };
  if (world.busy) {
    // The file is there from the begin of the snapshot on, and has its complete mark before the overlays are used.
    const ours = world.state === 'partial' && tries(circumstances, 'abort-snapshot') === 0;
    return ours ? { kind: 'abort-snapshot' } : { kind: 'wait' };
  }
  if (facts.merged) return { kind: 'go-on', from: facts.givenUp ? 'drop' : 'commit', giveUp: false };
  const obstacle = findObstacle(facts, world);
  if (obstacle !== undefined) return obstacle;
  const misnamed = findMisnamed(facts, world);
  if (misnamed !== undefined) return misnamed;
  if (world.machine === 'active' && needsResume(facts, world)) {
    if (tries(circumstances, 'resume') < resumeAttemptsMax) return { kind: 'resume' };
    const { state, reason } = world.status;
    return {
      kind: 'park',
      why: `it does not run on, it is ${state} (${reason})`,
      code: 'CANNOT_START_MACHINE',
    };
  }
  // It may be about to stop: libvirt still does what a dead agent has asked for.
  if (world.machine === 'active' && facts.vcpusHeld === true && tries(circumstances, 'resume') === 0)
    return { kind: 'resume' };
  const unseen = world.volumes.find(isOnUnseenOverlay);
  if (unseen !== undefined)
    return {
      kind: 'park',
      why: `QEMU has the overlay of ${unseen.target} in use, and libvirt does not know of it; shut the machine down and start it again`,
    };
  if (world.machine === 'off' && isDownByAccident(facts, world.status, circumstances.rebooted)) {
    if (tries(circumstances, 'start-cold') >= startAttemptsMax)
      return { kind: 'park', why: 'it cannot be started', code: 'CANNOT_START_MACHINE' };
    return { kind: 'start-cold', why: `it was ${world.status.state} (${world.status.reason})` };
  }
  return goOn(facts, world);
}

/** What nobody but an operator, or the end of a QEMU, can clear. */
function findObstacle(facts: LiveFacts, world: LiveWorld): LiveRepair | undefined {
  const isAway = world.machine === 'gone' || (world.machine === 'off' && world.status.reason === 'migrated');
  if (isAway && !mayNeedOverlays(facts, world)) return { kind: 'undo' };
  if (world.machine === 'gone')
    return {
      kind: 'park',
      why: 'libvirt does not know it any more; what it wrote since T1 is in the overlays',
    };
  if (world.machine === 'off' && world.status.reason === 'migrated')
    return { kind: 'park', why: 'it was migrated to another host, where its images may be in use' };
  for (const volume of world.volumes) {
    const { target } = volume;
    if (!volume.imageThere) return { kind: 'park', why: `the image of ${target} is not there` };
    if (volume.overlay === 'foreign')
      return { kind: 'park', why: `somebody has put another file in the place of the overlay of ${target}` };
    if (volume.overlay === 'absent' && (volume.live === 'overlay' || volume.persistent === 'overlay'))
      return { kind: 'park', why: `the overlay of ${target} is not there, and the machine needs it` };
    if (volume.live === 'unknown' || volume.persistent === 'unknown')
      return { kind: 'park', why: `${target} stands on a chain that is not known` };
    if (volume.qemu === undefined) continue;
    if (world.machine === 'off' && facts.vcpusHeld) return { kind: 'end-forgotten', pid: volume.qemu };
    if (world.machine === 'off')
      return { kind: 'park', why: `libvirt has forgotten its QEMU, process ${volume.qemu}, which runs on` };
  }
  return undefined;
}

/** The overlays may have been used: a state file has its complete mark before that. */
function mayNeedOverlays({ frozen }: LiveFacts, { state, volumes }: LiveWorld): boolean {
  return frozen !== undefined || state === 'complete' || volumes.some(({ overlay }) => overlay === 'written');
}

/** The persistent definition must name what the machine runs on, or wrote to last. */
function findMisnamed(facts: LiveFacts, world: LiveWorld): LiveRepair | undefined {
  const toOverlays = world.volumes.filter(
    (volume) => volume.persistent === 'image' && isNewest(facts, world, volume),
  );
  // libvirt never said that this T1 was complete.
  if (toOverlays.length > 0) return nameImages(toOverlays, true, toOverlays.some(isOnUnseenOverlay));
  const toImages = world.volumes.filter(
    (volume) => volume.persistent === 'overlay' && volume.live === 'image' && !isOnUnseenOverlay(volume),
  );
  return toImages.length > 0 ? nameImages(toImages, false, false) : undefined;
}

/**
 * A libvirtd that died between QEMU's switch to the overlays and its own note of it knows nothing of them. Where QEMU
 * still writes to the image too, it has opened the overlay and not switched yet: it never will.
 */
function isOnUnseenOverlay(volume: LiveVolumeWorld): boolean {
  return volume.live === 'image' && volume.job === null && volume.qemuOnOverlay && !volume.qemuOnImage;
}

function isNewest(facts: LiveFacts, world: LiveWorld, volume: LiveVolumeWorld): boolean {
  if (isOnUnseenOverlay(volume)) return facts.mergeBegun !== true;
  if (world.machine === 'active') return volume.live === 'overlay';
  // Before any merge has begun, an overlay that was written to is not in the image.
  return volume.overlay === 'written' && facts.mergeBegun !== true;
}

function nameImages(volumes: readonly LiveVolumeWorld[], onOverlays: boolean, giveUp: boolean): LiveRepair {
  return { kind: 'name-images', targets: volumes.map(({ target }) => target), onOverlays, giveUp };
}

/** The machine is as it must be; how far is the job? */
function goOn(facts: LiveFacts, world: LiveWorld): LiveRepair {
  const chains = world.volumes.map((volume) =>
    world.machine === 'active' ? volume.live : volume.persistent,
  );
  const allOnOverlay = chains.every((chain) => chain === 'overlay');
  const noneOnOverlay = chains.every((chain) => chain === 'image');
  const isKept = facts.retained !== undefined || facts.givenUp !== undefined;
  if (noneOnOverlay && !facts.mergeBegun && facts.frozen === undefined) return { kind: 'undo' };
  if (noneOnOverlay) return { kind: 'go-on', from: 'verify', giveUp: !isKept };
  if (isKept) return { kind: 'go-on', from: 'merge', giveUp: false };
  // Machines of a group have one T1, or none.
  const isAlone = facts.settings.group !== undefined && facts.begunTogether !== true;
  const isWhole = allOnOverlay && world.state === 'complete' && !facts.mergeBegun && !isAlone;
  if (!isWhole) return { kind: 'go-on', from: 'merge', giveUp: true };
  return { kind: 'go-on', from: facts.frozen === undefined ? 'mark' : 'stow', giveUp: false };
}

function tries(circumstances: LiveCircumstances, kind: LiveRepair['kind']): number {
  return circumstances.attempts.get(kind) ?? 0;
}
