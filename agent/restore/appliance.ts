import { spawn } from 'node:child_process';
import { access, chmod, mkdir, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { constants } from 'node:fs';
import { once } from 'node:events';
import { documentPath } from '../../common/documents.ts';
import { exists } from '../../common/files.ts';
import { isErrno, messageOf } from '../../common/errors.ts';
import { RestoreError } from './errors.ts';

/*
 * The appliance of libguestfs: the small system that reads the file systems of guests in a virtual machine of its own.
 * It is made of files of this host by supermin, before anything of a guest is there, and is root's; whoever reads a
 * guest can change nothing of it. libguestfs(3) calls this a fixed appliance.
 */

/** What libguestfs needs on Debian to read what guests have. */
const packages = 'guestfish libguestfs-xfs';
export const installHint = `apt-get install ${packages} linux-image-amd64 (elsewhere: guestfs-tools, libguestfs-xfs); see ${documentPath('docs/GUEST-FILES.md')}`;
const searchPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const programs = ['guestfish', 'supermin', 'setpriv', 'mount'];
const buildMs = 300_000;
const saidBytesMax = 4000;
/** What a build that was killed has left is older than any that runs. */
const leftMs = 2 * buildMs;

/** How Node and Debian call the processors that we run on. */
const processors: Readonly<Record<string, { readonly cpu: string; readonly triplet: string }>> = {
  x64: { cpu: 'x86_64', triplet: 'x86_64-linux-gnu' },
  arm64: { cpu: 'aarch64', triplet: 'aarch64-linux-gnu' },
};

/** libguestfs as it is installed on this host. */
export interface InstalledGuestfs {
  /** The recipe of its appliance. */
  readonly recipe: string;
}

/** @returns `null` where libguestfs is not installed */
export async function installedGuestfs(): Promise<InstalledGuestfs | null> {
  for (const program of programs) if ((await programPath(program)) === null) return null;
  const triplet = processors[process.arch]?.triplet ?? 'none';
  for (const place of [`/usr/lib/${triplet}/guestfs`, '/usr/lib64/guestfs', '/usr/lib/guestfs']) {
    const recipe = join(place, 'supermin.d');
    if (await exists(recipe)) return { recipe };
  }
  return null;
}

async function programPath(name: string): Promise<string | null> {
  for (const directory of searchPath.split(':')) {
    const path = join(directory, name);
    try {
      await access(path, constants.X_OK);
      return path;
    } catch (error) {
      if (!isErrno(error, 'ENOENT') && !isErrno(error, 'EACCES') && !isErrno(error, 'ENOTDIR')) throw error;
    }
  }
  return null;
}

/**
 * Makes the appliance, or makes it anew where kernel or packages of the host have changed.
 * @param place directory that keeps it
 * @param scratch for what is needed meanwhile
 * @returns the directory of the appliance
 * @throws RestoreError FILE_SYSTEM_UNSUPPORTED
 */
export async function ensureAppliance(
  { recipe }: InstalledGuestfs,
  place: string,
  scratch: string,
  signal: AbortSignal,
): Promise<string> {
  await mkdir(place, { recursive: true, mode: 0o700 });
  await removeLeft(place);
  const built = join(place, 'appliance.d');
  const cpu = processors[process.arch]?.cpu ?? process.arch;
  const began = new Date(Date.now());
  // The words that libguestfs itself gives to it, lib/appliance.c.
  const how = ['--if-newer', '--lock', join(place, 'lock'), '--copy-kernel', '-f', 'ext2', '--host-cpu', cpu];
  const { code, said } = await runBounded(['supermin', '--build', ...how, recipe, '-o', built], {
    environment: { ...environmentOf(scratch), ...kernelOf(process.env) },
    timeoutMs: buildMs,
    signal,
  });
  if (code !== 0)
    throw new RestoreError('FILE_SYSTEM_UNSUPPORTED', `the appliance of libguestfs cannot be made: ${said}`, {
      hint: `it needs a kernel in /boot with its modules in /lib/modules, and 1 GiB in ${place}; see ${documentPath('docs/GUEST-FILES.md')}`,
    });
  for (const name of ['kernel', 'initrd', 'root']) {
    const file = join(built, name);
    // Some distributions keep kernels from all but root, who does not run it.
    await chmod(file, 0o444);
    // The kernel has the time of the host's: older than the packages, it would be made anew by each look.
    await utimes(file, began, began);
  }
  await chmod(built, 0o755);
  await writeFile(join(built, 'README.fixed'), 'made by supermin for stillpoint\n');
  return built;
}

/** supermin makes it under a name of its own first. */
async function removeLeft(place: string): Promise<void> {
  for (const name of await readdir(place)) {
    if (!name.startsWith('appliance.d.')) continue;
    const { mtimeMs } = await stat(join(place, name));
    if (Date.now() - mtimeMs > leftMs) await rm(join(place, name), { recursive: true, force: true });
  }
}

/** Another kernel than the newest of the host, supermin(1). */
function kernelOf(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const names = ['SUPERMIN_KERNEL', 'SUPERMIN_KERNEL_VERSION', 'SUPERMIN_MODULES'];
  return Object.fromEntries(
    names.flatMap((name) => (name in environment ? [[name, environment[name]]] : [])),
  );
}

/** What programs of libguestfs are given; nothing of ours, and nothing of who has called us. */
export function environmentOf(scratch: string): NodeJS.ProcessEnv {
  return { PATH: searchPath, LC_ALL: 'C', HOME: scratch, TMPDIR: scratch };
}

/** QEMU's `isa-debug-exit` makes this of the 0x10 that the ROM writes. */
const romExitCode = 33;
const probeMs = 10_000;

/**
 * A guest can be run by KVM here: one whose first instructions end it is, for that the device is there says nothing.
 * Where that cannot be tried, it is believed.
 * @param rom file to be made, which `prefix` makes readable
 * @param prefix what the program is started by
 */
export async function kvmWorks(
  rom: string,
  prefix: readonly string[],
  signal: AbortSignal,
): Promise<boolean> {
  if (process.arch !== 'x64' || (await programPath('qemu-system-x86_64')) === null) return true;
  if (!(await exists('/dev/kvm'))) return false;
  const bytes = Buffer.alloc(64 * 1024, 0xf4);
  // At the reset vector: mov al, 0x10; out 0xf4, al; hlt.
  bytes.set([0xb0, 0x10, 0xe6, 0xf4, 0xf4], bytes.length - 16);
  await writeFile(rom, bytes, { mode: 0o444 });
  const machine = [
    '-machine',
    'pc,accel=kvm',
    // As libguestfs has it, lib/launch-direct.c: not every host can give it all.
    '-cpu',
    'max,la57=off',
    '-m',
    '16',
    '-nodefaults',
    '-no-user-config',
    '-display',
    'none',
  ];
  const device = ['-device', 'isa-debug-exit,iobase=0xf4,iosize=1', '-bios', rom, '-no-reboot'];
  const { code } = await runBounded([...prefix, 'qemu-system-x86_64', ...machine, ...device], {
    environment: environmentOf('/'),
    timeoutMs: probeMs,
    signal,
  });
  return code === romExitCode;
}

interface Ended {
  /** `null`: it was killed, or could not be started. */
  readonly code: number | null;
  readonly said: string;
}

/** Runs a program in a process group of its own, of which nothing is left. @throws the reason of the signal */
async function runBounded(
  [program = '', ...args]: readonly string[],
  options: {
    readonly environment: NodeJS.ProcessEnv;
    readonly timeoutMs: number;
    readonly signal: AbortSignal;
  },
): Promise<Ended> {
  const { environment, timeoutMs, signal } = options;
  signal.throwIfAborted();
  const child = spawn(program, args, {
    cwd: '/',
    env: environment,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  const take = (piece: Buffer): void => {
    said = (said + piece.toString('latin1')).slice(-saidBytesMax);
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  const kill = (): void => killGroup(child.pid);
  const timer = setTimeout(kill, timeoutMs);
  signal.addEventListener('abort', kill, { once: true });
  try {
    await once(child, 'close');
  } catch (error) {
    return { code: null, said: messageOf(error) };
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', kill);
  }
  signal.throwIfAborted();
  const isLate = child.exitCode === null;
  const shown = said.replaceAll(/[^\x20-\x7e]+/g, ' ').trim();
  return { code: child.exitCode, said: isLate ? `ended by ${child.signalCode ?? ''}: ${shown}` : shown };
}

/** Ends a process group of ours, if any of it is left. */
export function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch (error) {
    if (!isErrno(error, 'ESRCH')) throw error;
  }
}
