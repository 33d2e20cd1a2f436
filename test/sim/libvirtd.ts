import { lstat, rm } from 'node:fs/promises';
import { isAbsolute } from 'node:path';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { MachineStatus, RestoreStateOptions } from '../../agent/hypervisor/hypervisor.ts';
import { isErrno } from '../../common/errors.ts';
import { Interruption, refusal } from './errors.ts';
import type { LifecycleName } from './events.ts';
import { lifecycleEvent } from './events.ts';
import { openChain } from './images.ts';
import type { Instance, RunningOperation, SimulatedMachine } from './machine.ts';
import {
  parseDefinition,
  requireIdle,
  requireInstance,
  requireMigratable,
  requireSameMachine,
  requireUnlocked,
} from './machine.ts';
import type { Surroundings } from './qemu.ts';
import { flush } from './qemu.ts';
import type { SaveImage } from './saveImage.ts';
import { appendMemory, beginSaveImage, completeSaveImage, readSaveImage } from './saveImage.ts';

export const memoryFillBytes = 64 * 1024;
let lastInstanceId = 0;

/** Where a machine is found, added and dropped. */
export interface Registry extends Surroundings {
  add(definition: DomainXml): SimulatedMachine;
  drop(machine: SimulatedMachine): void;
  find(nameOrUuid: string): SimulatedMachine | undefined;
}

/** libvirtd's part in stopping: a transient machine goes with its QEMU. */
export function markStopped(
  world: Registry,
  machine: SimulatedMachine,
  reason: string,
  event?: LifecycleName,
): void {
  machine.instance = undefined;
  machine.status = { state: 'shut-off', reason };
  if (event !== undefined) world.emit(lifecycleEvent(machine.uuid, event));
  if (machine.persistent === undefined) world.drop(machine);
}

/** QEMU flushes everything when vCPUs that run are stopped, and only then. */
export async function stopCpus(
  world: Registry,
  machine: SimulatedMachine,
  status: MachineStatus,
): Promise<void> {
  const wasRunning = machine.status.state === 'running';
  machine.status = status;
  if (!wasRunning) return;
  await flush(requireInstance(machine));
  world.emit(lifecycleEvent(machine.uuid, 'suspendedPaused'));
}

export function startCpus(world: Registry, machine: SimulatedMachine, reason: string): void {
  machine.status = { state: 'running', reason };
  world.emit(lifecycleEvent(machine.uuid, 'resumedUnpaused'));
}

/** `virDomainSaveFlags` with a file and a definition. */
export async function save(
  world: Registry,
  machine: SimulatedMachine,
  file: string,
  definition: string,
): Promise<void> {
  await requireFresh(file);
  const instance = requireInstance(machine);
  requireIdle(machine);
  if (instance.blockJobs.size > 0) throw refusal('operationInvalid', 'domain has active block job');
  const before = machine.status;
  await locked(machine, 'save', async (operation) => {
    const { signal } = operation.controller;
    try {
      // libvirt stops the vCPUs first and looks at the definition then.
      await stopCpus(world, machine, { state: 'paused', reason: 'saving' });
      const xml = requireMigratable(definition, machine);
      const wasRunning = before.state === 'running';
      await accessing(file, () => beginSaveImage(file, xml.toString(), wasRunning));
      await world.faults.pass('save:part', signal);
      const memory = { uuid: machine.uuid, sequence: instance.sequence };
      await accessing(file, () => appendMemory(file, memory, memoryFillBytes));
      operation.job = { kind: 'unbounded', processedBytes: memoryFillBytes, totalBytes: memoryFillBytes };
      await world.faults.pass('save:memory', signal);
      await completeSaveImage(file);
      await world.faults.pass('save:complete', signal);
    } catch (error) {
      await endFailedWrite(world, machine, { file, before, error, reason: 'save-canceled' });
    }
    markStopped(world, machine, 'saved', 'stoppedSaved');
  });
}

/** What is left of a memory state that could not be written to its end. */
export async function endFailedWrite(
  world: Registry,
  machine: SimulatedMachine,
  failed: { file: string; before: MachineStatus; error: unknown; reason: string },
): Promise<never> {
  const { file, before, error } = failed;
  const reason = error instanceof Interruption ? error.reason : 'abort';
  const resumed: MachineStatus = { state: 'running', reason: failed.reason };
  if (reason === 'host') throw error;
  if (reason === 'libvirtd') {
    // Nobody removes the file; the machine is resumed by the next libvirtd.
    machine.afterRestart = before.state === 'running' ? resumed : before;
    throw error;
  }
  await rm(file, { force: true });
  if (reason === 'qemu') throw refusal('operationFailed', 'domain is no longer running');
  if (before.state === 'running') startCpus(world, machine, resumed.reason);
  else machine.status = before;
  throw error instanceof Interruption ? refusal('aborted', 'operation aborted: canceled by client') : error;
}

/** `virDomainRestoreFlags`. */
export async function restore(world: Registry, options: RestoreStateOptions): Promise<void> {
  const image = await readSaveImage(options.file);
  const source = DomainXml.parse(image.definition);
  const xml = options.definition === undefined ? source : parseDefinition(options.definition);
  requireSameMachine(xml, source);
  const machine = world.find(xml.uuid) ?? world.add(xml);
  if (machine.instance !== undefined)
    throw refusal('operationInvalid', `domain '${xml.name}' is already active`);
  await locked(machine, 'restore', async ({ controller: { signal } }) => {
    try {
      const instance = await launch(world, machine, xml);
      await world.faults.pass('restore:starting', signal);
      if (image.memory === undefined)
        throw refusal('internal', 'load of migration failed: Input/output error');
      instance.sequence = image.memory.sequence;
      enterRestored(world, machine, image, options.paused);
    } catch (error) {
      endFailedStart(world, machine, error);
    }
  });
}

function enterRestored(world: Registry, machine: SimulatedMachine, image: SaveImage, paused: boolean): void {
  world.emit(lifecycleEvent(machine.uuid, 'startedRestored'));
  if (paused || !image.wasRunning) {
    machine.status = { state: 'paused', reason: 'migrating' };
    world.emit(lifecycleEvent(machine.uuid, 'suspendedRestored'));
  } else {
    machine.status = { state: 'running', reason: 'restored' };
    world.emit(lifecycleEvent(machine.uuid, 'resumedFromSnapshot'));
  }
}

/** `virDomainCreate`: a cold boot, with an empty memory, of what is in the images. */
export async function start(world: Registry, machine: SimulatedMachine, paused: boolean): Promise<void> {
  if (machine.instance !== undefined) throw refusal('operationInvalid', 'domain is already running');
  requireUnlocked(machine);
  const { persistent } = machine;
  if (persistent === undefined) throw refusal('operationInvalid', 'transient domain cannot be started');
  await locked(machine, 'start', async () => {
    try {
      await launch(world, machine, DomainXml.parse(persistent));
    } catch (error) {
      endFailedStart(world, machine, error);
    }
  });
  if (paused) machine.status = { state: 'paused', reason: 'user' };
  else startCpus(world, machine, machine.hasManagedSave ? 'restored' : 'booted');
  world.emit(lifecycleEvent(machine.uuid, machine.hasManagedSave ? 'startedRestored' : 'startedBooted'));
  machine.hasManagedSave = false;
}

/** `virDomainCreateXML`: the machine is forgotten when it stops. */
export async function startTransient(world: Registry, definition: string): Promise<void> {
  const xml = parseDefinition(definition);
  if (world.find(xml.uuid) !== undefined || world.find(xml.name) !== undefined)
    throw refusal('operationFailed', `domain '${xml.name}' already exists`);
  const machine = world.add(xml);
  await locked(machine, 'start', async () => {
    try {
      await launch(world, machine, xml);
    } catch (error) {
      endFailedStart(world, machine, error);
    }
  });
  startCpus(world, machine, 'booted');
  world.emit(lifecycleEvent(machine.uuid, 'startedBooted'));
}

async function launch(world: Registry, machine: SimulatedMachine, xml: DomainXml): Promise<Instance> {
  const chains = new Map<string, Awaited<ReturnType<typeof openChain>>>();
  for (const volume of xml.volumes) {
    if (volume.path !== undefined) chains.set(volume.target, await openChain(volume));
  }
  const definition = DomainXml.parse(xml.toString());
  definition.removeBackingStores();
  machine.instance = {
    id: (lastInstanceId += 1),
    definition: definition.toString(),
    chains,
    staleChains: new Map(),
    sequence: 0,
    blockJobs: new Map(),
    guest: xml.guestAgent === undefined ? undefined : { frozen: false, agent: 'answers' },
    backup: undefined,
    unflushed: new Map(),
    full: new Set(),
    work: Promise.resolve(),
  };
  machine.status = { state: 'paused', reason: 'starting-up' };
  return machine.instance;
}

function endFailedStart(world: Registry, machine: SimulatedMachine, error: unknown): never {
  const reason = error instanceof Interruption ? error.reason : 'qemu';
  // A libvirtd that dies takes the QEMU along that it is just starting: the next one finds it gone.
  markStopped(world, machine, reason === 'libvirtd' ? 'daemon' : 'failed');
  if (reason === 'libvirtd') machine.afterRestart = { state: 'shut-off', reason: 'daemon' };
  throw error instanceof Interruption
    ? refusal('operationFailed', 'qemu unexpectedly closed the monitor')
    : error;
}

/** Runs one state-changing operation of a machine; the kill functions of the world wait for its end. */
export async function locked(
  machine: SimulatedMachine,
  name: RunningOperation['name'],
  run: (operation: RunningOperation) => Promise<void>,
): Promise<void> {
  requireUnlocked(machine);
  const operation: RunningOperation = {
    name,
    controller: new AbortController(),
    job: {
      kind: name === 'save' || name === 'snapshot' || name === 'backup' ? 'unbounded' : 'none',
      processedBytes: 0,
      totalBytes: 0,
    },
    done: Promise.resolve(),
  };
  machine.operation = operation;
  const running = run(operation).finally(() => {
    machine.operation = undefined;
  });
  operation.done = running.catch(() => undefined);
  await running;
}

/** Gives an errno of the state file as libvirt does, so that a full file system is NO_SPACE. */
export async function accessing(file: string, access: () => Promise<void>): Promise<void> {
  try {
    await access();
  } catch (error) {
    if (!(error instanceof Error) || !('errno' in error) || typeof error.errno !== 'number') throw error;
    throw refusal('system', `Unable to write '${file}': ${error.message}`, -error.errno);
  }
}

/** The port refuses what libvirt would truncate. */
export async function requireFresh(file: string): Promise<void> {
  if (!isAbsolute(file))
    throw refusal('operationFailed', `the path of a memory state must be absolute: ${file}`);
  try {
    await lstat(file);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return;
    throw error;
  }
  throw refusal('operationFailed', `${file} exists and is not overwritten`);
}
