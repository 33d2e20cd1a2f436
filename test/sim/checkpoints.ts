import type { Checkpoint } from '../../agent/hypervisor/backupXml.ts';
import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { refusal } from './errors.ts';
import { tool } from './images.ts';
import { type Instance, requireInstance, type SimulatedMachine } from './machine.ts';

/*
 * Checkpoints of the simulator: their bitmaps are real ones in the images, so that whatever writes to an image marks
 * what it changes, and a copy of an image has them as QEMU would leave them.
 */

/** @throws HypervisorError when a checkpoint cannot be made, before anything is changed */
export function requireCheckpointPossible(machine: SimulatedMachine, { name, targets }: Checkpoint): void {
  const definition = DomainXml.parse(requireInstance(machine).definition);
  if (machine.checkpoints.includes(name))
    throw refusal('operationFailed', `domain checkpoint ${name} already exists`);
  for (const target of targets)
    if (definition.volume(target).format !== 'qcow2')
      throw refusal('configUnsupported', `checkpoint for disk ${target} unsupported for storage type raw`);
}

export async function addCheckpoint(machine: SimulatedMachine, checkpoint: Checkpoint): Promise<void> {
  const definition = DomainXml.parse(requireInstance(machine).definition);
  for (const target of checkpoint.targets) {
    const { path = '' } = definition.volume(target);
    await tool('qemu-img', ['bitmap', '--add', '-g', '64k', '-f', 'qcow2', path, checkpoint.name]);
  }
  machine.checkpoints.push(checkpoint.name);
  machine.checkpointTargets.set(checkpoint.name, checkpoint.targets);
}

export async function deleteCheckpoint(
  machine: SimulatedMachine,
  name: string,
  what: 'all' | 'metadata',
): Promise<void> {
  if (!machine.checkpoints.includes(name)) return;
  if (what === 'all') {
    if (machine.instance === undefined)
      throw refusal('operationUnsupported', 'cannot delete checkpoint for inactive domain');
    const definition = DomainXml.parse(machine.instance.definition);
    for (const target of machine.checkpointTargets.get(name) ?? []) {
      const { path = '' } = definition.volume(target);
      if (!(await readImageInfo(path, 'qcow2')).bitmaps.includes(name))
        throw refusal('internal', `bitmap '${name}' not found in backing chain of '${target}'`);
      await tool('qemu-img', ['bitmap', '--remove', '-f', 'qcow2', path, name]);
    }
  }
  machine.checkpoints = machine.checkpoints.filter((candidate) => candidate !== name);
  machine.checkpointTargets.delete(name);
}

/** libvirt gives an overlay of its snapshot the bitmaps of the image below, which begin anew there. */
export async function propagateBitmaps(image: string, overlay: string): Promise<void> {
  for (const name of (await readImageInfo(image, 'qcow2')).usableBitmaps)
    await tool('qemu-img', ['bitmap', '--add', '-g', '64k', '-f', 'qcow2', overlay, name]);
}

/** A QEMU that is killed has not stored what it had noted. */
export async function loseBitmaps(instance: Instance): Promise<void> {
  for (const { path, format } of DomainXml.parse(instance.definition).volumes)
    if (path !== undefined && format === 'qcow2') await loseBitmapsOf(path);
}

/** The same of one image that it had open for writing. */
export async function loseBitmapsOf(image: string): Promise<void> {
  for (const name of (await readImageInfo(image, 'qcow2')).bitmaps)
    await tool('qemu-img', ['bitmap', '--remove', '-f', 'qcow2', image, name]);
}
