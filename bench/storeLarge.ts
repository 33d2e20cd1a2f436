import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { LabMachine } from '../test/lab/lab.ts';
import { type Flow, measureInTurn } from './flows.ts';
import { mostMemory } from './mostMemory.ts';
import { summarize } from './statistics.ts';
import { type StoreBench, copyTimeoutMs, createMachineOf, emptyDirectory } from './storeBench.ts';
import { changeMachine, changeRaw, changesOf, layoutOf, mib, MixedContent, writeRaw } from './storeImage.ts';
import { Borg, installVault, Restic, Stillpoint, type Tool, Virtnbdbackup } from './storeTools.ts';

/** A large volume with little in it, of which 64 MiB change between two backups. */
export async function measureLarge(bench: StoreBench): Promise<object> {
  const { lab, command, rounds, directory, seed, largeBytes, largeDataBytes } = bench;
  const raw = join(directory, 'volume.raw');
  const content = new MixedContent(seed);
  const extents = layoutOf(largeBytes, largeDataBytes, seed);
  await writeRaw(raw, largeBytes, extents, content);
  // virtnbdbackup refuses a machine that has checkpoints of others.
  const machines = {
    ours: await createMachineOf(lab, 'sp-ours', raw),
    theirs: await createMachineOf(lab, 'sp-theirs', raw),
  };
  const vault = join(directory, 'ours');
  const agent = await installVault(lab, { name: 'agent-large', command, directory: vault });
  const ours = new Stillpoint(agent, machines.ours, vault);
  const changes = changesOf(largeBytes);
  const inMachine = (machine: LabMachine) => () => changeMachine(lab, machine, changes, content);
  const inFile = (): Promise<void> => changeRaw(raw, changes, content);
  const flows = {
    ours: await incrementOf(ours, inMachine(machines.ours)),
    restic: await incrementOf(new Restic(lab, raw, join(directory, 'restic')), inFile),
    borg: await incrementOf(new Borg(lab, raw, join(directory, 'borg')), inFile),
    'virtnbdbackup-lz4': await incrementOf(
      new Virtnbdbackup(lab, machines.theirs, join(directory, 'virtnbdbackup'), 'lz4'),
      inMachine(machines.theirs),
    ),
  };
  const increment = await measureInTurn(lab, flows, rounds);
  const restore = await measureRestore(bench, ours);
  await flows.ours.prepare?.();
  const peak = async (args: readonly string[]): Promise<number> =>
    Math.round((await mostMemory(ours.agent, args, { timeoutMs: copyTimeoutMs })) / mib);
  const pssMiB = { increment: await peak(ours.backupCommand), first: 0 };
  await ours.letGo();
  await ours.reset();
  pssMiB.first = await peak(ours.backupCommand);
  for (const machine of Object.values(machines)) await machine.remove();
  return { changedMiB: 64, changedStretches: changes.length, increment, restore, pssMiB };
}

/** After a first backup of its own. */
async function incrementOf(tool: Tool, change: () => Promise<void>): Promise<Flow> {
  await tool.reset();
  await tool.backup('first');
  await tool.check('first');
  return {
    prepare: change,
    run: () => tool.backup('increment'),
    cleanUp: () => tool.check('increment'),
  };
}

/** Of ours alone: restic has no sparse files, and would write all of the zeros. */
async function measureRestore(
  { lab, rounds, directory, largeBytes }: StoreBench,
  ours: Stillpoint,
): Promise<object> {
  const target = join(directory, 'restored');
  const flow: Flow = { run: () => ours.restore(target), cleanUp: () => emptyDirectory(target) };
  await emptyDirectory(target);
  const { durationMs } = await measureInTurn(lab, { ours: flow }, rounds);
  await rm(target, { recursive: true });
  const { min, median, max } = durationMs['ours'] ?? summarize([]);
  const rate = (ms: number): number => Math.round(largeBytes / 1000 / ms);
  return { durationMs, logicalMBPerSecond: { min: rate(max), median: rate(median), max: rate(min) } };
}
