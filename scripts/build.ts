/**
 * npm run build [DIRECTORY]: makes the product as a host runs it, in `dist` unless told: one directory with the command,
 * its Node.js, its units and the licences of what is in it. It may be copied to any place, and needs neither npm nor
 * this checkout there. In few files the program starts in half the time, and with less memory.
 */
import {
  access,
  chmod,
  constants,
  copyFile,
  cp,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { build, type Metafile } from 'esbuild';
import { isErrno, messageOf } from '../common/errors.ts';

const repository = join(import.meta.dirname, '..');
const mark = '.stillpoint-build';
/** Has a file for each processor, which cannot be in a bundle. */
const native = ['koffi', `@koromix/koffi-linux-${process.arch}`];
/** What is CommonJS in the bundle asks for Node's own modules in this way. */
const requireOfNode =
  "import { createRequire as createRequireOfNode } from 'node:module';\nconst require = createRequireOfNode(import.meta.url);";

const launcher = `#!/bin/sh
# The stillpoint command, by the Node.js beside it.
here=$(dirname "$(dirname "$(readlink -f "$0")")")
NODE_COMPILE_CACHE=\${NODE_COMPILE_CACHE:-$here/cache}
# A call on a network mount whose server is gone holds its thread until the server is back; with Node's four
# threads that would stop work on every other machine too.
UV_THREADPOOL_SIZE=\${UV_THREADPOOL_SIZE:-32}
# Memory that threads have given back stays with each of them otherwise.
MALLOC_ARENA_MAX=\${MALLOC_ARENA_MAX:-2}
export NODE_COMPILE_CACHE UV_THREADPOOL_SIZE MALLOC_ARENA_MAX
# What takes time is done by the system and on threads: what runs here can be small.
exec "$here/bin/node" --optimize-for-size "$here/lib/main.js" "$@"
`;

/** Bundles the programs: the command, the child that speaks with libvirt, the server of volumes, the thread of repositories. */
async function bundle(lib: string): Promise<Metafile> {
  const { metafile } = await build({
    absWorkingDir: repository,
    entryPoints: [
      'cli/main.ts',
      'agent/serveVolume.ts',
      'agent/hypervisor/libvirt/worker.ts',
      'storage/repository/chunkWorker.ts',
    ],
    outdir: lib,
    entryNames: '[name]',
    bundle: true,
    splitting: true,
    platform: 'node',
    format: 'esm',
    target: 'node24',
    external: native,
    banner: { js: requireOfNode },
    legalComments: 'none',
    // Node.js keeps the text of what it runs in memory. Names stay: traces and the names of errors are made of them.
    minifyWhitespace: true,
    minifySyntax: true,
    metafile: true,
    logLevel: 'warning',
  });
  await writeFile(join(lib, 'package.json'), '{ "type": "module" }\n');
  return metafile;
}

/**
 * With `import { z } from 'zod'` all of zod is in the bundle, with its messages in all languages: 2 MiB of the service's
 * memory for nothing.
 * @throws Error when it is
 */
function requirePartOfZod({ outputs }: Metafile): void {
  const inputs = Object.values(outputs).flatMap((output) => Object.entries(output.inputs));
  const isLanguage = (file: string): boolean => file.includes('/zod/v4/locales/') && !file.endsWith('/en.js');
  if (!inputs.some(([file, { bytesInOutput }]) => isLanguage(file) && bytesInOutput > 0)) return;
  throw new Error("all of zod is in the bundle; write it everywhere as: import * as z from 'zod'");
}

/** The npm packages of which something is in the bundle. */
function packagesIn({ inputs }: Metafile): readonly string[] {
  const names = Object.keys(inputs).flatMap((file) => {
    const inside = file.split('node_modules/').at(-1);
    if (inside === undefined || inside === file) return [];
    const [first = '', second = ''] = inside.split('/');
    return [first.startsWith('@') ? `${first}/${second}` : first];
  });
  return [...new Set(names)].toSorted();
}

/**
 * Some packages of a large project name their licence and leave its text to the others.
 * @throws Error for a package without a licence: it must not be passed on
 */
async function copyLicences(packages: readonly string[], to: string): Promise<void> {
  await mkdir(to);
  for (const name of packages) {
    const from = join(repository, 'node_modules', name);
    const file = (await readdir(from)).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file === undefined ? await namedLicence(name, from) : await readFile(join(from, file));
    await writeFile(join(to, `${name.replace('/', '-')}.txt`), text);
  }
}

/** Has no licence file: this source of it begins with the words of the second of its licences. */
const secondLicence = { name: '@bufbuild/protobuf', file: 'dist/esm/wire/varint.js' };

/** The text of the licence that a package names, where we have it: our own has no words but those of Apache 2.0. */
async function namedLicence(name: string, directory: string): Promise<string> {
  const described: unknown = JSON.parse(await readFile(join(directory, 'package.json'), 'utf8'));
  const named =
    typeof described === 'object' && described !== null && 'license' in described ? described.license : null;
  const apache = await readFile(join(repository, 'LICENSE'), 'utf8');
  if (named === 'Apache-2.0') return apache;
  if (named !== '(Apache-2.0 AND BSD-3-Clause)' || name !== secondLicence.name)
    throw new Error(`the npm package ${name} has no licence file`);
  const source = await readFile(join(directory, secondLicence.file), 'utf8');
  const [words = ''] = /^(\/\/.*\n)+/.exec(source) ?? [];
  if (!words.includes('Redistribution')) throw new Error(`${secondLicence.file} of ${name} names no licence`);
  return `${apache}\n\n${words.replaceAll(/^\/\/ ?/gm, '')}`;
}

async function copyProgram(to: string): Promise<void> {
  await mkdir(join(to, 'bin'));
  await copyFile(process.execPath, join(to, 'bin/node'), constants.COPYFILE_FICLONE);
  await writeFile(join(to, 'bin/stillpoint'), launcher);
  for (const name of ['node', 'stillpoint']) await chmod(join(to, 'bin', name), 0o755);
  for (const name of native)
    await cp(join(repository, 'node_modules', name), join(to, 'lib/node_modules', name), { recursive: true });
  await cp(join(repository, 'systemd'), join(to, 'systemd'), { recursive: true });
  await copyFile(join(repository, 'config/stillpoint.yaml'), join(to, 'stillpoint.yaml'));
  await copyFile(join(repository, 'LICENSE'), join(to, 'LICENSE'));
}

/** Only what an earlier build made is replaced. @throws Error for anything else */
async function requireOurs(target: string): Promise<void> {
  const entries = await readdir(target).catch((error: unknown) => {
    if (isErrno(error, 'ENOENT')) return [];
    throw error;
  });
  if (entries.length === 0) return;
  await access(join(target, mark)).catch((cause: unknown) => {
    throw new Error(`${target} is not empty, and no build of Stillpoint; nothing was changed`, { cause });
  });
}

async function main(): Promise<void> {
  const target = resolve(process.argv[2] ?? join(repository, 'dist'));
  await requireOurs(target);
  const making = join(dirname(target), `.${basename(target)}.making`);
  await rm(making, { recursive: true, force: true });
  await mkdir(making, { recursive: true });
  const metafile = await bundle(join(making, 'lib'));
  requirePartOfZod(metafile);
  await copyProgram(making);
  // That of koffi covers its file for this processor.
  await copyLicences([...packagesIn(metafile), 'koffi'], join(making, 'licences'));
  await copyFile(join(dirname(process.execPath), '../LICENSE'), join(making, 'licences/node.txt'));
  await writeFile(join(making, mark), '');
  await rm(target, { recursive: true, force: true });
  await rename(making, target);
  console.log(`${target}: copy it to its place, such as /opt/stillpoint`);
}

try {
  await main();
} catch (error) {
  console.error(`BUILD_FAILED: ${messageOf(error)}`);
  process.exitCode = 1;
}
