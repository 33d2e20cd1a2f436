/**
 * npm run bench -- store [ROUNDS] [--phases LIST] [--small-mib N] [--large-gib N] [--large-data-mib N]: a repository,
 * encrypted, compressed and deduplicated, against what others make of the same content. docs/SPEED.md says what each
 * tool is given, and how each figure is made. Phases, all of them unless told:
 *   small      of a volume that is half full: first backup, sizes, restore, verify, and reads through our export
 *   large      of a large volume with little in it: increments of 64 MiB, and our restore
 *   clones     what five clones of the small volume take
 *   processor  the ceiling of the processors, and the memory of the index
 */
import { mkdir, rm } from 'node:fs/promises';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startLab } from '../test/lab/lab.ts';
import { roundsFrom, toolVersions } from './flows.ts';
import { buildProduct } from './product.ts';
import { measureClones } from './storeClones.ts';
import { mib } from './storeImage.ts';
import { measureLarge } from './storeLarge.ts';
import { measureProcessor } from './storeProcessor.ts';
import { measureSmall } from './storeSmall.ts';
import type { StoreBench } from './storeBench.ts';

const phases = {
  small: measureSmall,
  large: measureLarge,
  clones: measureClones,
  processor: measureProcessor,
} satisfies Record<string, (bench: StoreBench) => Promise<object>>;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    phases: { type: 'string', default: Object.keys(phases).join(',') },
    'small-mib': { type: 'string', default: '4096' },
    'large-gib': { type: 'string', default: '100' },
    'large-data-mib': { type: 'string', default: '4096' },
  },
});

async function main(): Promise<void> {
  const rounds = roundsFrom('store', positionals[0]);
  const sizes = {
    smallBytes: Number(values['small-mib']) * mib,
    largeBytes: Number(values['large-gib']) * 1024 * mib,
    largeDataBytes: Number(values['large-data-mib']) * mib,
  };
  const wanted = values.phases.split(',');
  await using lab = await startLab();
  const command = await buildProduct(lab);
  const results: Record<string, object> = {};
  for (const [name, measure] of Object.entries(phases)) {
    if (!wanted.includes(name)) continue;
    const directory = join(lab.root, `bench-${name}`);
    await mkdir(directory);
    results[name] = await measure({ lab, command, rounds, directory, seed: 1, ...sizes });
    // The next one needs the room.
    await rm(directory, { recursive: true });
  }
  const versions = await toolVersions(lab, { restic: ['restic', 'version'], borg: ['borg', '--version'] });
  const host = { node: process.version, cpu: cpus()[0]?.model, cpus: cpus().length };
  console.log(
    JSON.stringify({ bench: 'store', rounds, ...versions, ...host, ...sizes, ...results }, null, 2),
  );
}

await main();
