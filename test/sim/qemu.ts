import { copyFile, rm } from 'node:fs/promises';
import { join } from 'node:path';

import type { BackingImage } from '../../agent/hypervisor/domainXml.ts';
import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { HypervisorEvent, PullOptions } from '../../agent/hypervisor/hypervisor.ts';
import { QemuImageError, rebaseImage } from '../../common/qemuImage.ts';
import { Interruption, refusal } from './errors.ts';
import { blockJobEvent, lifecycleEvent, now } from './events.ts';
import type { Faults } from './faults.ts';
import { throwIfInterrupted } from './faults.ts';
import { setHeaderBacking, writeGuestBlock } from './images.ts';
import type { Instance, RunningPull, SimulatedMachine } from './machine.ts';
import { requireInstance, shownChain } from './machine.ts';

const rebaseDeadlineMs = 60_000;

/** What a simulated QEMU process needs from its surroundings. */
export interface Surroundings {
  readonly faults: Faults;
  /** For copies of images whose metadata is not flushed. */
  readonly scratch: string;
  emit(event: HypervisorEvent): void;
}

/** Writes number `sequence` as the guest would, with a flush; on a full file system QEMU stops the guest. */
export async function guestWrite(
  world: Surroundings,
  machine: SimulatedMachine,
  target: string,
  sequence: number,
): Promise<void> {
  const instance = requireInstance(machine);
  if (machine.status.state !== 'running') throw new Error(`the guest of ${machine.name} does not run`);
  const { path, format } = DomainXml.parse(instance.definition).volume(target);
  if (path === undefined) throw new Error(`volume ${target} of ${machine.name} has no image`);
  if (instance.full.has(target)) {
    machine.status = { state: 'paused', reason: 'io-error' };
    world.emit({ kind: 'io-error', uuid: machine.uuid, path, reason: 'enospc', ...now() });
    world.emit(lifecycleEvent(machine.uuid, 'suspendedIoError'));
    return;
  }
  await exclusively(instance, async () => {
    await writeGuestBlock(path, format ?? 'raw', sequence);
    await flush(instance, target);
  });
  instance.sequence = Math.max(instance.sequence, sequence);
}

/** Puts the metadata of finished pulls on the disk; of one volume or of all. */
export async function flush(instance: Instance, target?: string): Promise<void> {
  for (const [volume, copy] of instance.unflushed) {
    if (target !== undefined && volume !== target) continue;
    instance.unflushed.delete(volume);
    await rm(copy, { force: true });
  }
}

/**
 * What a crash of QEMU or of the host leaves of images whose pull was not flushed (trap 2): the header has
 * lost its backing file, the clusters that were copied are not in the map.
 */
export async function loseUnflushed(instance: Instance): Promise<void> {
  await instance.work;
  const xml = DomainXml.parse(instance.definition);
  for (const [target, copy] of instance.unflushed) {
    const { path } = xml.volume(target);
    if (path === undefined) continue;
    await copyFile(copy, path);
    await setHeaderBacking(path, instance.chains.get(target)?.[0]);
  }
  await flush(instance);
}

/** Starts a block_stream; it goes on without libvirtd and ends with QEMU. */
export function startPull(world: Surroundings, machine: SimulatedMachine, options: PullOptions): void {
  const instance = requireInstance(machine);
  const { target, base } = options;
  const chain = shownChain(instance, target);
  if (chain === undefined) throw refusal('invalidArgument', `disk '${target}' not found in domain`);
  if (instance.blockJobs.has(target)) {
    throw refusal('operationUnsupported', `disk '${target}' already in active block job`);
  }
  const kept = base === undefined ? chain.length : chain.findIndex((image) => image.path === base);
  if (kept === -1)
    throw refusal('invalidArgument', `could not find image '${base}' in chain for '${target}'`);
  const rest = base === undefined ? [] : chain.slice(kept);
  if (kept === 0) {
    // Nothing to copy is an instant success: the result says nothing, only the chain does.
    setImmediate(() => world.emit(blockJobEvent(machine.uuid, target, 'completed')));
    return;
  }
  const endBytes = 100 * 65_536;
  const pull: RunningPull = {
    progress: {
      kind: 'pull',
      bandwidthBytesPerSecond: options.bandwidthBytesPerSecond,
      currentBytes: 0,
      endBytes,
      ready: false,
    },
    controller: new AbortController(),
    done: Promise.resolve(),
    finish: undefined,
  };
  instance.blockJobs.set(target, pull);
  pull.done = runPull(world, machine, instance, target, rest).catch((error: unknown) => {
    instance.blockJobs.delete(target);
    const failed = error instanceof QemuImageError;
    if (!failed && !(error instanceof Interruption)) throw error;
    // A QEMU that has died says nothing more.
    if (failed) world.emit(blockJobEvent(machine.uuid, target, 'failed'));
    else if (error.reason === 'abort') world.emit(blockJobEvent(machine.uuid, target, 'canceled'));
  });
}

async function runPull(
  world: Surroundings,
  machine: SimulatedMachine,
  instance: Instance,
  target: string,
  rest: readonly BackingImage[],
): Promise<void> {
  const pull = instance.blockJobs.get(target);
  const { path } = DomainXml.parse(instance.definition).volume(target);
  if (pull === undefined || path === undefined) throw new Error('a pull has a job and an image');
  const { signal } = pull.controller;
  const { endBytes } = pull.progress;
  // Never in the call that starts it: libvirt answers first.
  await new Promise((resolve) => setImmediate(resolve));
  await world.faults.pass('pull:started', signal);
  pull.progress = { ...pull.progress, currentBytes: endBytes / 2 };
  await world.faults.pass('pull:half', signal);
  if (instance.full.has(target)) {
    // Seen on QEMU 7.2: the job fails, the chain stays, an idle guest runs on.
    instance.blockJobs.delete(target);
    world.emit(blockJobEvent(machine.uuid, target, 'failed'));
    return;
  }
  pull.progress = { ...pull.progress, currentBytes: endBytes };
  await world.faults.pass('pull:copied', signal);
  await exclusively(instance, () => changeMetadata(world, machine, instance, { target, path, rest, signal }));
  const before = shownChain(instance, target) ?? [];
  instance.chains.set(target, rest);
  instance.staleChains.set(target, before);
  pull.isDismissed = true;
  await world.faults.pass('pull:dismissed', signal);
  if (instance.blockJobs.get(target) !== pull) return;
  instance.blockJobs.delete(target);
  instance.staleChains.delete(target);
  world.emit(blockJobEvent(machine.uuid, target, 'completed'));
}

async function changeMetadata(
  world: Surroundings,
  machine: SimulatedMachine,
  instance: Instance,
  pulled: { target: string; path: string; rest: readonly BackingImage[]; signal: AbortSignal },
): Promise<void> {
  const { target, path, rest, signal } = pulled;
  const copy = join(world.scratch, `${machine.uuid}-${instance.id}-${target}`);
  await copyFile(path, copy);
  const [next] = rest;
  const onto = next?.path === undefined ? null : { path: next.path, format: next.format ?? 'raw' };
  try {
    await rebaseImage(path, onto, { deadlineMs: rebaseDeadlineMs });
    throwIfInterrupted(signal);
  } catch (error) {
    // A pull that does not finish leaves the header, and thereby all data, as it was.
    await copyFile(copy, path);
    await rm(copy);
    throw error;
  }
  instance.unflushed.set(target, copy);
}

/** One change of image files after the other. */
export async function exclusively(instance: Instance, change: () => Promise<void>): Promise<void> {
  const before = instance.work;
  const mine = Promise.allSettled([before]).then(change);
  instance.work = mine.catch(() => undefined);
  await mine;
}
