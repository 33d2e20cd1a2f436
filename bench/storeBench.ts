import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Lab, LabMachine } from '../test/lab/lab.ts';
import type { Flow } from './flows.ts';
import type { Tool } from './storeTools.ts';

/** What the phases of the bench `store` are given. */
export interface StoreBench {
  readonly lab: Lab;
  /** The product, as built. */
  readonly command: string;
  readonly rounds: number;
  /** Where this phase leaves what it makes; it is removed afterwards. */
  readonly directory: string;
  readonly seed: number;
  /** Of the small volume; half of it is data. */
  readonly smallBytes: number;
  readonly largeBytes: number;
  readonly largeDataBytes: number;
}

/** Copying an image of many gibibytes. */
export const copyTimeoutMs = 3600 * 1000;

/** A machine whose volume has the content of a raw file; its writer writes little, and to the beginning only. */
export async function createMachineOf(lab: Lab, name: string, raw: string): Promise<LabMachine> {
  const image = join(lab.imagesDir, `${name}.qcow2`);
  await lab.run('qemu-img', ['convert', '-O', 'qcow2', raw, image], { timeoutMs: copyTimeoutMs });
  const machine = await lab.createMachine({ name, rate: 1, volumes: [{ target: 'vda', path: image }] });
  await machine.waitUntilWriting();
  return machine;
}

/** For each tool what it does, with what is done around it and not measured. */
export function flowsOf(
  tools: Readonly<Record<string, Tool>>,
  flow: (tool: Tool) => Flow,
): Readonly<Record<string, Flow>> {
  return Object.fromEntries(Object.entries(tools).map(([name, tool]) => [name, flow(tool)]));
}

/** An empty directory, in the place of what is there. */
export async function emptyDirectory(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true });
  await mkdir(path);
}
