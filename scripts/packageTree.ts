import { createHash } from 'node:crypto';
import { chmod, cp, lstat, lutimes, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { constants, gzipSync } from 'node:zlib';
import { completionFor } from '../cli/completion.ts';
import { manualPages } from '../cli/manual.ts';
import { version } from '../common/version.ts';

const repository = join(import.meta.dirname, '..');
const debian = join(repository, 'packaging/debian');
export const maintainer = 'Stillpoint maintainers <maintainers@stillpoint.invalid>';
const documents = ['README.md', 'ARCHITECTURE.md', 'docs'];

/** Debian's names of processors. */
const architectures: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };

/** The processor of this machine, as Debian calls it. @throws Error for one that Node.js is not carried for */
export function architecture(): string {
  const name = architectures[process.arch];
  if (name === undefined) throw new Error(`no package is made for ${process.arch}`);
  return name;
}

/**
 * Lays out what a package installs.
 * @param program what `scripts/build.ts` has made; it is taken away
 * @param root an empty directory
 * @param made the time of everything in it
 */
export async function layOut(program: string, root: string, made: Date): Promise<void> {
  const docs = join(root, 'usr/share/doc/stillpoint');
  await mkdir(join(root, 'usr/lib'), { recursive: true });
  await mkdir(docs, { recursive: true });
  for (const empty of ['etc/stillpoint', 'var/cache/stillpoint', 'var/lib/stillpoint'])
    await mkdir(join(root, empty), { recursive: true });
  await moveInto(join(root, 'usr/lib/systemd/system'), await filesIn(join(program, 'systemd')));
  await moveInto(join(docs, 'examples'), [join(program, 'stillpoint.yaml')]);
  await rename(join(program, 'licences'), join(docs, 'licences'));
  for (const rest of ['systemd', 'LICENSE', '.stillpoint-build'])
    await rm(join(program, rest), { recursive: true });
  await rename(program, join(root, 'usr/lib/stillpoint'));
  await cp(join(debian, 'stillpoint'), await placeOf(root, 'usr/bin/stillpoint'));
  await cp(join(debian, 'copyright'), join(docs, 'copyright'));
  for (const name of documents)
    await cp(join(repository, name), join(docs, basename(name)), { recursive: true });
  await writeFile(
    join(docs, 'CHANGELOG.md.gz'),
    zipped(await readFile(join(repository, 'CHANGELOG.md'), 'utf8')),
  );
  await writeFile(join(docs, 'changelog.gz'), zipped(debianChangelog(made)));
  await writeManual(root, made);
  await writeCompletions(root);
}

/** Writes the control files of the package beside what it installs. */
export async function writeControl(root: string): Promise<void> {
  const control = join(root, 'DEBIAN');
  const files = await filesBelow(root);
  let sizeBytes = 0;
  const sums: string[] = [];
  for (const path of files) {
    const content = await readFile(join(root, path));
    sizeBytes += content.length;
    sums.push(`${createHash('md5').update(content).digest('hex')}  ${path}`);
  }
  await mkdir(control);
  await writeFile(join(control, 'md5sums'), `${sums.join('\n')}\n`);
  await writeFile(join(control, 'control'), controlOf(sizeBytes));
  for (const script of ['postinst', 'prerm', 'postrm']) await cp(join(debian, script), join(control, script));
}

/** Makes modes and times the same wherever the package is made. */
export async function level(root: string, made: Date): Promise<void> {
  for (const name of await readdir(root, { recursive: true })) {
    const path = join(root, name);
    const status = await lstat(path);
    if (!status.isSymbolicLink()) {
      const isProgram = status.isDirectory() || (status.mode & 0o111) !== 0;
      await chmod(path, isProgram ? 0o755 : 0o644);
    }
    await lutimes(path, made, made);
  }
  // Keys and the journal are nobody else's.
  for (const own of ['etc/stillpoint', 'var/lib/stillpoint']) await chmod(join(root, own), 0o700);
  await chmod(root, 0o755);
  await lutimes(root, made, made);
}

async function placeOf(root: string, path: string): Promise<string> {
  const place = join(root, path);
  await mkdir(dirname(place), { recursive: true });
  return place;
}

async function filesIn(directory: string): Promise<readonly string[]> {
  return (await readdir(directory)).map((name) => join(directory, name));
}

async function moveInto(directory: string, files: readonly string[]): Promise<void> {
  await mkdir(directory, { recursive: true });
  for (const file of files) await rename(file, join(directory, basename(file)));
}

async function filesBelow(root: string): Promise<readonly string[]> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length + 1))
    .toSorted();
}

async function writeManual(root: string, made: Date): Promise<void> {
  const directory = join(root, 'usr/share/man/man1');
  await mkdir(directory, { recursive: true });
  for (const { name, text } of manualPages(made.toISOString().slice(0, 10)))
    await writeFile(join(directory, `${name}.1.gz`), zipped(text));
}

async function writeCompletions(root: string): Promise<void> {
  const places = {
    bash: 'usr/share/bash-completion/completions/stillpoint',
    zsh: 'usr/share/zsh/vendor-completions/_stillpoint',
    fish: 'usr/share/fish/vendor_completions.d/stillpoint.fish',
  };
  for (const [shell, path] of Object.entries(places))
    await writeFile(await placeOf(root, path), `${completionFor(shell).join('\n')}\n`);
}

/** zlib writes neither a name nor a time. */
function zipped(text: string): Buffer {
  return gzipSync(text, { level: constants.Z_BEST_COMPRESSION });
}

function debianChangelog(made: Date): string {
  return [
    `stillpoint (${version}) unstable; urgency=medium`,
    '',
    '  * What has changed is in CHANGELOG.md.gz beside this file.',
    '',
    ` -- ${maintainer}  ${made.toUTCString().replace('GMT', '+0000')}`,
    '',
  ].join('\n');
}

function controlOf(sizeBytes: number): string {
  return [
    'Package: stillpoint',
    `Version: ${version}`,
    `Architecture: ${architecture()}`,
    `Maintainer: ${maintainer}`,
    `Installed-Size: ${Math.ceil(sizeBytes / 1024)}`,
    'Depends: libc6 (>= 2.28), libgcc-s1, libstdc++6, libvirt0, qemu-utils, init-system-helpers',
    'Recommends: libvirt-daemon-system, qemu-block-extra, e2fsprogs',
    'Suggests: qemu-system-common, guestfish, libguestfs-xfs, bash-completion',
    'Section: admin',
    'Priority: optional',
    'Description: backs up running KVM machines at one still point in time',
    ' Stillpoint backs up a running KVM machine at one instant, every disk together',
    ' and CPU and memory too where that is asked for, and brings it back to exactly',
    ' that instant. Backups are plain files, or go into a deduplicating, encrypted',
    ' repository on a disk or on S3. The package brings the Node.js that runs it.',
    '',
  ].join('\n');
}
