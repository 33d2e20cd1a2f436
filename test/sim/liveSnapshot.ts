import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { LiveSnapshotOptions } from '../../agent/hypervisor/hypervisor.ts';
import { propagateBitmaps } from './checkpoints.ts';
import { refusal } from './errors.ts';
import { requireImage } from './images.ts';
import type { Registry } from './libvirtd.ts';
import {
  accessing,
  endFailedWrite,
  locked,
  memoryFillBytes,
  requireFresh,
  startCpus,
  stopCpus,
} from './libvirtd.ts';
import type { Instance, SimulatedMachine } from './machine.ts';
import { renderDefinition, requireIdle, requireInstance } from './machine.ts';
import { appendMemory, beginSaveImage, completeSaveImage } from './saveImage.ts';

/** `virDomainSnapshotCreateXML` with memory, LIVE, ATOMIC, REUSE_EXT and NO_METADATA. */
export async function snapshotLive(
  world: Registry,
  machine: SimulatedMachine,
  { memoryFile, overlays }: LiveSnapshotOptions,
): Promise<void> {
  await requireFresh(memoryFile);
  const instance = requireInstance(machine);
  requireIdle(machine);
  if (instance.blockJobs.size > 0) throw refusal('operationUnsupported', 'disk already in active block job');
  for (const { target, overlay } of overlays) {
    if (!instance.chains.has(target)) throw refusal('invalidArgument', `no disk named '${target}'`);
    await requireImage(overlay);
  }
  const before = machine.status;
  await locked(machine, 'snapshot', async (operation) => {
    const { signal } = operation.controller;
    try {
      // As it was before the snapshot: with the images that the overlays are made over.
      const definition = renderDefinition(machine, 'migratable');
      await accessing(memoryFile, () => beginSaveImage(memoryFile, definition, true));
      await world.faults.pass('snapshot:memory', signal);
      await stopCpus(world, machine, { state: 'paused', reason: 'creating-snapshot' });
      const memory = { uuid: machine.uuid, sequence: instance.sequence };
      await accessing(memoryFile, () => appendMemory(memoryFile, memory, memoryFillBytes));
      operation.job = { kind: 'unbounded', processedBytes: memoryFillBytes, totalBytes: memoryFillBytes };
      await world.faults.pass('snapshot:stopped', signal);
      await completeSaveImage(memoryFile);
      await world.faults.pass('snapshot:complete', signal);
    } catch (error) {
      await endFailedWrite(world, machine, { file: memoryFile, before, error, reason: 'unpaused' });
    }
    for (const { target, overlay } of overlays) await putOnTop(machine, instance, target, overlay);
    if (before.state === 'running') startCpus(world, machine, 'unpaused');
    else machine.status = before;
  });
}

async function putOnTop(
  machine: SimulatedMachine,
  instance: Instance,
  target: string,
  overlay: string,
): Promise<void> {
  const { path, format } = DomainXml.parse(instance.definition).volume(target);
  if (path !== undefined && format === 'qcow2') await propagateBitmaps(path, overlay);
  instance.chains.set(target, [{ path, format }, ...(instance.chains.get(target) ?? [])]);
  setImage(machine, instance, target, { path: overlay, format: 'qcow2' });
}

/** libvirt writes the new path into the live and the persistent definition. */
export function setImage(
  machine: SimulatedMachine,
  instance: Instance,
  target: string,
  image: { readonly path: string; readonly format: string },
): void {
  const changed = (definition: string): string => {
    const xml = DomainXml.parse(definition);
    xml.setVolumePath(target, image.path, image.format);
    return xml.toString();
  };
  instance.definition = changed(instance.definition);
  if (machine.persistent !== undefined) machine.persistent = changed(machine.persistent);
}
