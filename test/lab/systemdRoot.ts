import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, rmdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { execa } from 'execa';
import { isErrno } from '../../common/errors.ts';
import { eventually } from './eventually.ts';

const script = join(import.meta.dirname, 'systemdRoot.sh');
const startMs = 60_000;

export interface RootResult {
  readonly exitCode: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * A systemd of its own as process 1 of a root of its own, over the files of this machine: a container in all but name.
 * What a test installs, starts and breaks in it is gone with it.
 */
export class SystemdRoot implements AsyncDisposable {
  readonly #base: string;
  readonly #holder: ChildProcess;
  /** Process 1, as this namespace numbers it. */
  readonly #systemd: number;

  private constructor(base: string, holder: ChildProcess, systemd: number) {
    this.#base = base;
    this.#holder = holder;
    this.#systemd = systemd;
  }

  /** @throws Error with what systemd said, when it does not come up */
  static async start(): Promise<SystemdRoot> {
    if (process.getuid?.() !== 0) throw new Error('a systemd of its own needs root');
    const base = await mkdtemp(join(tmpdir(), 'stillpoint-systemd-'));
    // The mounts are the script's alone, and go with it.
    const holder = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', script, base], {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    let said = '';
    for (const stream of [holder.stdout, holder.stderr]) stream.on('data', (text) => (said += String(text)));
    try {
      const systemd = await eventually(() => processOne(holder), { timeoutMs: startMs });
      const root = new SystemdRoot(base, holder, systemd);
      await eventually(
        async () => /running|degraded/.test((await root.run('systemctl', ['is-system-running'])).stdout),
        { timeoutMs: startMs, intervalMs: 100 },
      );
      return root;
    } catch (error) {
      await end(holder, base);
      throw new Error(`systemd did not start: ${said}`, { cause: error });
    }
  }

  /** Runs a program in it; does not throw when that fails. */
  async run(
    program: string,
    args: readonly string[] = [],
    options: { readonly timeoutMs?: number; readonly input?: string } = {},
  ): Promise<RootResult> {
    const { exitCode, stdout, stderr } = await execa('nsenter', [...this.#enter(), program, ...args], {
      reject: false,
      timeout: options.timeoutMs ?? 120_000,
      killSignal: 'SIGKILL',
      input: options.input ?? '',
      extendEnv: false,
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C.UTF-8', DEBIAN_FRONTEND: 'noninteractive' },
    });
    return { exitCode, stdout, stderr };
  }

  /** As `run`. @throws Error when it fails; @returns what it printed */
  async must(program: string, ...args: readonly string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await this.run(program, args);
    if (exitCode === 0) return stdout;
    throw new Error(`${program} ${args.join(' ')}: exit code ${exitCode}\n${stdout}\n${stderr}`);
  }

  /** Writes a file in it. */
  async write(path: string, text: string): Promise<void> {
    const { exitCode, stderr } = await this.run('sh', ['-c', 'mkdir -p "$(dirname "$0")"; cat >"$0"', path], {
      input: text,
    });
    if (exitCode !== 0) throw new Error(`${path}: ${stderr}`);
  }

  /** Copies a file of this machine into it. */
  async copyIn(file: string, path: string): Promise<void> {
    await execa('cp', ['--reflink=auto', file, `/proc/${this.#systemd}/root${path}`]);
  }

  /** One property of a unit. */
  async property(unit: string, name: string): Promise<string> {
    return (await this.must('systemctl', 'show', '--value', '-p', name, unit)).trim();
  }

  #enter(): readonly string[] {
    // The runner of tests gives all children options for a Node.js of its own.
    return ['--target', String(this.#systemd), '--all', '--wdns=/', 'env', '--unset=NODE_OPTIONS'];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await end(this.#holder, this.#base);
  }
}

/** systemd: the child of the `unshare` that made its namespaces. */
async function processOne(holder: ChildProcess): Promise<number | undefined> {
  if (holder.exitCode !== null) throw new Error(`it ended with ${holder.exitCode}`);
  const { pid } = holder;
  if (pid === undefined) return undefined;
  const children = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
  const [first] = children.split(' ').filter(Boolean).map(Number);
  if (first === undefined) return undefined;
  const name = await readFile(`/proc/${first}/comm`, 'utf8');
  return name.trim() === 'systemd' ? first : undefined;
}

/** With its process 1 everything in it is gone; the control groups that it made stay. */
async function end(holder: ChildProcess, base: string): Promise<void> {
  if (holder.exitCode === null && holder.signalCode === null) {
    const gone = once(holder, 'exit');
    holder.kill('SIGKILL');
    await gone;
  }
  await eventually(() => removeGroups(`stillpoint-${basename(base)}`), { timeoutMs: 20_000 });
  await rm(base, { recursive: true });
}

async function removeGroups(name: string): Promise<boolean> {
  const mounts = await readFile('/proc/self/mountinfo', 'utf8');
  const place = mounts
    .split('\n')
    .find((line) => line.includes(' - cgroup2 '))
    ?.split(' ')[4];
  if (place === undefined) return true;
  const top = join(place, name);
  let all: readonly string[];
  try {
    const below = await readdir(top, { recursive: true, withFileTypes: true });
    all = below.filter((entry) => entry.isDirectory()).map((entry) => join(entry.parentPath, entry.name));
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return true;
    throw error;
  }
  // The deepest first.
  for (const group of all.toSorted((a, b) => b.length - a.length)) await rmdir(group);
  await rmdir(top);
  return true;
}
