import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { CommitOptions } from '../../agent/hypervisor/hypervisor.ts';
import { loseBitmapsOf } from './checkpoints.ts';
import { Interruption, refusal } from './errors.ts';
import { blockJobEvent } from './events.ts';
import { aborted } from './faults.ts';
import { tool } from './images.ts';
import { setImage } from './liveSnapshot.ts';
import type { Instance, RunningPull, SimulatedMachine } from './machine.ts';
import { requireInstance } from './machine.ts';
import { exclusively, type Surroundings } from './qemu.ts';

interface Committing {
  readonly world: Surroundings;
  readonly machine: SimulatedMachine;
  readonly instance: Instance;
  readonly options: CommitOptions;
  readonly job: RunningPull;
}

/** Starts an active commit; it goes on without libvirtd, stays when it is ready, and ends with QEMU. */
export function startCommit(world: Surroundings, machine: SimulatedMachine, options: CommitOptions): void {
  const instance = requireInstance(machine);
  const { target, top, base, bandwidthBytesPerSecond } = options;
  const chain = instance.chains.get(target);
  if (chain === undefined) throw refusal('invalidArgument', `disk '${target}' not found in domain`);
  if (instance.blockJobs.has(target))
    throw refusal('operationUnsupported', `disk '${target}' already in active block job`);
  for (const path of [top, base]) {
    const isThere =
      path === base
        ? chain.some((image) => image.path === base)
        : DomainXml.parse(instance.definition).volume(target).path === top;
    if (!isThere) throw refusal('invalidArgument', `could not find image '${path}' in chain for '${target}'`);
  }
  const job: RunningPull = {
    progress: {
      kind: 'active-commit',
      bandwidthBytesPerSecond,
      currentBytes: 0,
      endBytes: 100 * 65_536,
      ready: false,
    },
    controller: new AbortController(),
    done: Promise.resolve(),
    finish: undefined,
  };
  instance.blockJobs.set(target, job);
  job.done = runCommit({ world, machine, instance, options, job }).catch(async (error: unknown) => {
    instance.blockJobs.delete(target);
    if (!(error instanceof Interruption)) throw error;
    if (error.reason !== 'abort' && chain.some(({ path, format }) => path === base && format === 'qcow2'))
      await loseBitmapsOf(base);
    if (error.reason === 'abort') world.emit(blockJobEvent(machine.uuid, target, 'canceled'));
  });
}

async function runCommit(committing: Committing): Promise<void> {
  const { world, machine, instance, options, job } = committing;
  const { target } = options;
  const { signal } = job.controller;
  // Never in the call that starts it: libvirt answers first.
  await new Promise((resolve) => setImmediate(resolve));
  await world.faults.pass('commit:started', signal);
  const { endBytes } = job.progress;
  job.progress = { ...job.progress, currentBytes: endBytes / 2 };
  await world.faults.pass('commit:half', signal);
  // The base is changed from here on; the top stays complete.
  await exclusively(instance, () => copyDown(options));
  await world.faults.pass('commit:copied', signal);
  const pivoted = Promise.withResolvers<void>();
  job.finish = async () => {
    await exclusively(instance, () => copyDown(options));
    const chain = instance.chains.get(target) ?? [];
    const at = chain.findIndex((image) => image.path === options.base);
    setImage(machine, instance, target, { path: options.base, format: chain[at]?.format ?? 'raw' });
    instance.chains.set(target, chain.slice(at + 1));
    instance.blockJobs.delete(target);
    world.emit(blockJobEvent(machine.uuid, target, 'completed'));
    pivoted.resolve();
  };
  job.progress = { ...job.progress, currentBytes: endBytes, ready: true };
  world.emit(blockJobEvent(machine.uuid, target, 'ready'));
  await Promise.race([pivoted.promise, aborted(signal).then(() => Promise.reject(reasonOf(signal)))]);
}

function reasonOf(signal: AbortSignal): unknown {
  return signal.reason;
}

/** What the top holds, written into the base; the top is left as it is. */
async function copyDown({ top, base }: CommitOptions): Promise<void> {
  await tool('qemu-img', ['commit', '-q', '-d', '-f', 'qcow2', '-b', base, top]);
}
