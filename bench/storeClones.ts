import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { copyTimeoutMs, type StoreBench } from './storeBench.ts';
import { layoutOf, MixedContent, writeRaw } from './storeImage.ts';
import { Borg, diskBytes, installVault, resetVault, Restic, runOurs } from './storeTools.ts';

const clones = 5;

/** What five identical images take in one repository, each under a name of its own, against one of them. */
export async function measureClones(bench: StoreBench): Promise<object> {
  const { lab, command, directory, seed, smallBytes } = bench;
  const raw = join(directory, 'volume.raw');
  await writeRaw(raw, smallBytes, layoutOf(smallBytes, smallBytes / 2, seed), new MixedContent(seed));
  const vault = join(directory, 'ours');
  const agent = await installVault(lab, { name: 'agent-clones', command, directory: vault });
  await resetVault(agent, vault);
  const sizes: Record<string, number[]> = { ours: [], restic: [], borg: [] };
  const restic = join(directory, 'restic');
  const borg = join(directory, 'borg');
  await new Restic(lab, raw, restic).reset();
  await new Borg(lab, raw, borg).reset();
  for (let number = 1; number <= clones; number += 1) {
    // One at a time: they need room.
    const copy = join(directory, `clone-${number}.raw`);
    await lab.run('cp', ['--sparse=always', raw, copy], { timeoutMs: copyTimeoutMs });
    await new Restic(lab, copy, restic).backup();
    await new Borg(lab, copy, borg).backup();
    const image = join(directory, `clone-${number}.qcow2`);
    await lab.run('qemu-img', ['convert', '-O', 'qcow2', copy, image], { timeoutMs: copyTimeoutMs });
    await runOurs(agent, ['backup', '--image', image]);
    await rm(copy);
    await rm(image);
    for (const [name, of] of Object.entries(sizes)) of.push(await diskBytes(lab, join(directory, name)));
  }
  const ratioTo = (name: string): number => ratio(sizes['ours']?.at(-1), sizes[name]?.at(-1));
  return {
    clones,
    storedBytes: sizes,
    fiveToOne: Object.fromEntries(Object.entries(sizes).map(([name, of]) => [name, ratio(of.at(-1), of[0])])),
    oursTo: { restic: ratioTo('restic'), borg: ratioTo('borg') },
  };
}

function ratio(one = Number.NaN, other = Number.NaN): number {
  return Number((one / other).toFixed(3));
}
