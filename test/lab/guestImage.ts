import { createHash } from 'node:crypto';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { execa } from 'execa';
import { isErrno } from '../../common/errors.ts';

const repository = path.resolve(import.meta.dirname, '../..');
const cacheDir = path.join(repository, '.cache/guest');
const sourceDir = path.join(import.meta.dirname, 'guest');
const programs = ['writer.c', 'agent.c'].map((name) => path.join(sourceDir, name));
const sources = [...programs, path.join(sourceDir, 'agent.h')];
const compilerArgs = ['-O2', '-static', '-Wall', '-Wextra', '-Werror'];
/** What the guest needs; each brings what it depends on. */
const wantedModules = ['virtio_pci', 'virtio_blk', 'virtio_console'];

/** What a guest boots from. */
export interface GuestImage {
  readonly kernel: string;
  readonly initramfs: string;
}

/**
 * The test guest's kernel and initramfs, built when the sources or the kernel changed and cached below
 * `.cache/guest/` otherwise. The Debian cloud kernel comes from `npm run setup`.
 */
export async function guestImage(): Promise<GuestImage> {
  const kernelDir = await unpackedKernel();
  const hash = createHash('sha256').update(path.basename(kernelDir));
  for (const source of [...sources, import.meta.filename]) hash.update(await readFile(source));
  const key = hash.digest('hex').slice(0, 16);
  const imageDir = path.join(cacheDir, `image-${key}`);
  const image = { kernel: path.join(imageDir, 'vmlinuz'), initramfs: path.join(imageDir, 'initramfs') };
  if (await exists(image.initramfs)) return image;
  await mkdir(cacheDir, { recursive: true });
  const buildDir = await mkdtemp(path.join(cacheDir, 'build-'));
  try {
    await build(kernelDir, buildDir);
    await publish(buildDir, imageDir);
  } finally {
    await rm(buildDir, { recursive: true, force: true });
  }
  return image;
}

/** The kernel of the test guests with its modules, where supermin(1) finds what it looks for. */
export async function guestKernel(): Promise<{ readonly kernel: string; readonly modules: string }> {
  const kernelDir = await unpackedKernel();
  const modules = await findModules(kernelDir);
  if (modules === undefined)
    throw new Error(`${kernelDir} holds no kernel; remove it and run: npm run setup`);
  const version = path.basename(modules);
  // Which modules need which is written down when a kernel is installed; this one is only unpacked.
  if (!(await exists(path.join(modules, 'modules.dep'))))
    await execa('depmod', ['-b', path.resolve(modules, '../../..'), version], { timeout: 60_000 });
  return { kernel: path.join(kernelDir, 'boot', `vmlinuz-${version}`), modules };
}

async function unpackedKernel(): Promise<string> {
  const names = await namesIn(path.join(cacheDir, 'kernel'));
  const newest = names
    .filter((name) => !name.startsWith('.'))
    .toSorted((a, b) => a.localeCompare(b, 'en', { numeric: true }))
    .at(-1);
  if (newest === undefined) throw new Error('the guest kernel is missing; run: npm run setup');
  return path.join(cacheDir, 'kernel', newest);
}

async function build(kernelDir: string, buildDir: string): Promise<void> {
  const init = path.join(buildDir, 'init');
  await execa('gcc', [...compilerArgs, '-o', init, ...programs], { timeout: 120_000 });
  const modulesDir = await findModules(kernelDir);
  if (modulesDir === undefined)
    throw new Error(`${kernelDir} holds no kernel; remove it and run: npm run setup`);
  const modules = await modulesInOrder(modulesDir);
  const archive = new CpioArchive();
  archive.directory('dev');
  archive.directory('modules');
  for (const module of modules) archive.file(`modules/${module.name}.ko`, module.content, 0o644);
  const order = modules.map((module) => `${module.name}.ko\n`).join('');
  archive.file('modules/order', Buffer.from(order), 0o644);
  archive.file('init', await readFile(init), 0o755);
  await copyFile(
    path.join(kernelDir, 'boot', `vmlinuz-${path.basename(modulesDir)}`),
    path.join(buildDir, 'vmlinuz'),
  );
  await writeFile(path.join(buildDir, 'initramfs'), archive.finish());
  await rm(init);
}

async function findModules(kernelDir: string): Promise<string | undefined> {
  // Debian 13 has moved them below /usr.
  for (const parent of ['lib/modules', 'usr/lib/modules'].map((name) => path.join(kernelDir, name))) {
    const [version] = await namesIn(parent);
    if (version !== undefined) return path.join(parent, version);
  }
  return undefined;
}

/** Another test process may have built the same image meanwhile; theirs is as good. */
async function publish(buildDir: string, imageDir: string): Promise<void> {
  try {
    await rename(buildDir, imageDir);
  } catch (error) {
    if (!isErrno(error, 'ENOTEMPTY') && !isErrno(error, 'EEXIST')) throw error;
  }
}

interface KernelModule {
  readonly name: string;
  readonly content: Buffer;
}

/** The wanted modules and what they depend on, dependencies first; what is built in is left out. */
async function modulesInOrder(modulesDir: string): Promise<readonly KernelModule[]> {
  const files = new Map<string, string>();
  for (const entry of await readdir(modulesDir, { recursive: true })) {
    const match = /([^/]+)\.ko(?:\.xz)?$/.exec(entry);
    if (match?.[1] !== undefined) files.set(moduleName(match[1]), path.join(modulesDir, entry));
  }
  const ordered = new Map<string, KernelModule>();
  const add = async (name: string): Promise<void> => {
    const file = files.get(name);
    if (file === undefined || ordered.has(name)) return;
    const content = await moduleContent(file);
    // The module's own list, as depmod reads it (.modinfo section).
    const depends = /\0depends=([^\0]*)\0/.exec(content.toString('latin1'))?.[1] ?? '';
    for (const dependency of depends.split(',')) await add(moduleName(dependency));
    ordered.set(name, { name, content });
  };
  for (const name of wantedModules) await add(name);
  return [...ordered.values()];
}

function moduleName(fileName: string): string {
  return fileName.replaceAll('-', '_');
}

async function moduleContent(file: string): Promise<Buffer> {
  if (!file.endsWith('.xz')) return readFile(file);
  const { stdout } = await execa('xz', ['-dc', file], { encoding: 'buffer', timeout: 60_000 });
  return Buffer.from(stdout);
}

/** Writes the "newc" format that the Linux kernel unpacks (Documentation/driver-api/early-userspace). */
class CpioArchive {
  readonly #parts: Buffer[] = [];
  #inode = 1;

  directory(name: string): void {
    this.#entry(name, 0o040755, Buffer.alloc(0));
  }

  file(name: string, content: Buffer, mode: number): void {
    this.#entry(name, 0o100000 | mode, content);
  }

  finish(): Buffer {
    this.#entry('TRAILER!!!', 0, Buffer.alloc(0));
    return Buffer.concat(this.#parts);
  }

  #entry(name: string, mode: number, content: Buffer): void {
    const fields = [this.#inode++, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length + 1, 0];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}${name}\0`;
    this.#parts.push(padded(Buffer.from(header)), padded(content));
  }
}

function padded(content: Buffer): Buffer {
  return Buffer.concat([content, Buffer.alloc((4 - (content.length % 4)) % 4)]);
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  }
}

async function exists(file: string): Promise<boolean> {
  try {
    await readFile(file, { flag: 'r' });
    return true;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return false;
    throw error;
  }
}
