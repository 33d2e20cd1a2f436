/**
 * npm run package [-- [--quick] [DIRECTORY]]: makes stillpoint_VERSION_ARCHITECTURE.deb from `npm run build`, in
 * `packages` unless told. The same sources make the same bytes: all times are those of SOURCE_DATE_EPOCH, or of the last
 * commit. --quick hardly compresses it.
 */
import { chmod, mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { execa } from 'execa';
import { messageOf } from '../common/errors.ts';
import { version } from '../common/version.ts';
import { architecture, layOut, level, writeControl } from './packageTree.ts';

const repository = join(import.meta.dirname, '..');

/** When the sources were made. */
async function sourceDate(): Promise<Date> {
  const told = process.env['SOURCE_DATE_EPOCH'];
  const seconds = told ?? (await execa('git', ['log', '-1', '--format=%ct'], { cwd: repository })).stdout;
  if (!/^[0-9]+$/.test(seconds)) throw new Error(`SOURCE_DATE_EPOCH is "${seconds}", expected seconds`);
  return new Date(Number(seconds) * 1000);
}

async function makePackage(work: string, target: string, quick: boolean): Promise<string> {
  const made = await sourceDate();
  const program = join(work, 'program');
  const root = join(work, 'root');
  await execa(process.execPath, [join(repository, 'scripts/build.ts'), program], { stdout: 'ignore' });
  await mkdir(root);
  await layOut(program, root, made);
  await writeControl(root);
  await level(root, made);
  const name = `stillpoint_${version}_${architecture()}.deb`;
  const compression = quick ? ['-Zgzip', '-z1'] : ['-Zxz'];
  await execa('dpkg-deb', ['--root-owner-group', ...compression, '--build', root, join(work, name)], {
    env: { SOURCE_DATE_EPOCH: String(made.getTime() / 1000) },
  });
  await mkdir(target, { recursive: true });
  // Whole or not at all, on whatever file system.
  const making = join(target, `.${name}`);
  await execa('cp', [join(work, name), making]);
  await rename(making, join(target, name));
  return join(target, name);
}

async function main(): Promise<void> {
  const [target = join(repository, 'packages')] = process.argv.slice(2).filter((word) => word !== '--quick');
  const quick = process.argv.includes('--quick');
  const work = await mkdtemp(join(tmpdir(), 'stillpoint-package-'));
  try {
    await chmod(work, 0o755);
    console.log(await makePackage(work, resolve(target), quick));
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

try {
  await main();
} catch (error) {
  console.error(`PACKAGE_FAILED: ${messageOf(error)}`);
  process.exitCode = 1;
}
