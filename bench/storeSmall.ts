import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type Flow, measureInTurn } from './flows.ts';
import { mostMemory } from './mostMemory.ts';
import { type StoreBench, copyTimeoutMs, createMachineOf, emptyDirectory, flowsOf } from './storeBench.ts';
import { layoutOf, mib, MixedContent, writeRaw } from './storeImage.ts';
import { measureReads, withExport } from './storeReads.ts';
import { Borg, diskBytes, installVault, Restic, Stillpoint, type Tool, Virtnbdbackup } from './storeTools.ts';

/** A volume that is half full: what every tool needs to back it up, bring it back and check it. */
export async function measureSmall(bench: StoreBench): Promise<object> {
  const { lab, command, rounds, directory, seed, smallBytes } = bench;
  const raw = join(directory, 'volume.raw');
  const extents = layoutOf(smallBytes, smallBytes / 2, seed);
  await writeRaw(raw, smallBytes, extents, new MixedContent(seed));
  const machine = await createMachineOf(lab, 'sp-small', raw);
  const vault = join(directory, 'ours');
  const agent = await installVault(lab, { name: 'agent-small', command, directory: vault });
  const ours = new Stillpoint(agent, machine, vault);
  const tools = {
    ours,
    virtnbdbackup: new Virtnbdbackup(lab, machine, join(directory, 'virtnbdbackup'), 'none'),
    'virtnbdbackup-lz4': new Virtnbdbackup(lab, machine, join(directory, 'virtnbdbackup-lz4'), 'lz4'),
    restic: new Restic(lab, raw, join(directory, 'restic')),
    borg: new Borg(lab, raw, join(directory, 'borg')),
  } satisfies Record<string, Tool>;
  const first = await measureInTurn(
    lab,
    flowsOf(tools, (tool) => ({
      prepare: () => tool.reset(),
      run: () => tool.backup('first'),
      cleanUp: async () => {
        await tool.check('first');
        await tool.letGo();
      },
    })),
    rounds,
  );
  const storedBytes: Record<string, number> = {};
  for (const [name, tool] of Object.entries(tools)) storedBytes[name] = await diskBytes(lab, tool.directory);
  const restore = await measureRestore(bench, raw, tools);
  const verify = await measureInTurn(lab, verifyFlows(tools), rounds);
  const reads = await measureReads(bench, ours);
  const pssMiB = await memoryOf(bench, ours);
  await machine.remove();
  const dataBytes = extents.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  return { dataBytes, extents: extents.length, first, storedBytes, restore, verify, reads, pssMiB };
}

/** Beside the tools: the same data copied by nbdcopy out of the raw file, and out of our export of the backup. */
async function measureRestore(
  { lab, rounds, directory }: StoreBench,
  raw: string,
  tools: Readonly<Record<string, Tool>> & { readonly ours: Stillpoint },
): Promise<object> {
  const target = join(directory, 'restored');
  const cleanUp = (): Promise<void> => emptyDirectory(target);
  await cleanUp();
  const copied = join(target, 'volume.raw');
  const copy = async (url: string): Promise<void> => {
    await lab.run('nbdcopy', ['--flush', url, copied], { timeoutMs: copyTimeoutMs });
  };
  const socket = join(lab.root, 'tmp', 'image.sock');
  const nbdcopy: Flow = {
    run: async () => {
      const server = ['qemu-nbd', '--fork', '-r', '-x', 'vda', '-k', socket, '-f', 'raw', raw];
      await lab.run('sh', ['-c', '"$@" >/dev/null 2>&1', 'sh', ...server]);
      await copy(`nbd+unix:///vda?socket=${socket}`);
    },
    cleanUp,
  };
  const oursToRaw: Flow = {
    run: () => withExport(lab, tools.ours, (url) => copy(url)),
    cleanUp,
  };
  const flows = flowsOf(tools, (tool) => ({ run: () => tool.restore(target), cleanUp }));
  const result = await measureInTurn(lab, { ...flows, oursToRaw, nbdcopy }, rounds);
  await rm(target, { recursive: true });
  return result;
}

function verifyFlows(tools: Readonly<Record<string, Tool>>): Readonly<Record<string, Flow>> {
  const flows: Record<string, Flow> = {};
  for (const [name, { verify }] of Object.entries(tools))
    if (verify !== null) flows[name] = { run: verify, cleanUp: () => Promise.resolve() };
  return flows;
}

/** Not in the rounds that are timed: looking takes time. */
async function memoryOf({ directory }: StoreBench, ours: Stillpoint): Promise<object> {
  const target = join(directory, 'restored');
  await emptyDirectory(target);
  const peak = async (args: readonly string[]): Promise<number> =>
    Math.round((await mostMemory(ours.agent, args, { timeoutMs: copyTimeoutMs })) / mib);
  const verify = await peak(ours.verifyCommand);
  const restore = await peak(ours.restoreCommand(target));
  await ours.reset();
  const first = await peak(ours.backupCommand);
  await rm(target, { recursive: true });
  return { first, restore, verify };
}
