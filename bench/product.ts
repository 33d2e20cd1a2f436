import { join } from 'node:path';
import type { Lab } from '../test/lab/lab.ts';

const repository = join(import.meta.dirname, '..');

/** Builds the product as a host runs it; the path of its command. */
export async function buildProduct(lab: Pick<Lab, 'run'>): Promise<string> {
  const directory = join(repository, '.cache/bench/stillpoint');
  const build = ['node', join(repository, 'scripts/build.ts'), directory];
  await lab.run(join(repository, 'scripts/with-node'), build, { timeoutMs: 300_000 });
  return join(directory, 'bin/stillpoint');
}
