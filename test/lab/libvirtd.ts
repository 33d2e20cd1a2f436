import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readdir, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { execa } from 'execa';
import { isErrno } from '../../common/errors.ts';
import { eventually } from './eventually.ts';
import { Keeper } from './keeperClient.ts';
import { enterNamespace, labMarker, labPrefix, labProcesses, processFile, sweepLab } from './sweep.ts';

export interface LabOptions {
  /** More lines for the private `qemu.conf`. */
  readonly qemuConf?: readonly string[] | undefined;
  /** More lines for the private `libvirtd.conf`. */
  readonly libvirtdConf?: readonly string[] | undefined;
}

export interface RunOptions {
  /** Added to the environment. */
  readonly env?: Readonly<Record<string, string>> | undefined;
  readonly input?: string | undefined;
  /** SIGKILL after this long; 60 s if not given. */
  readonly timeoutMs?: number | undefined;
  /** Throw when the command fails; true if not given. */
  readonly check?: boolean | undefined;
}

export interface RunResult {
  /** `undefined` when a signal ended it. */
  readonly exitCode: number | undefined;
  readonly signal: string | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/** A command that runs inside a laboratory while the test goes on. */
export interface BackgroundRun {
  /** Id of the command itself (nsenter replaces itself by it). */
  readonly pid: number;
  /** What has been printed up to now. */
  output(): { readonly stdout: string; readonly stderr: string };
  kill(signal?: NodeJS.Signals): void;
  /** SIGKILL, and wait until it is gone. */
  kill9(): Promise<RunResult>;
  readonly done: Promise<RunResult>;
}

const qemuConf = [
  // No virtlogd: QEMU writes its logs by itself.
  'stdio_handler = "file"',
  'security_driver = "none"',
  // Machines of the same name in two laboratories would share a control group.
  'cgroup_controllers = [ ]',
  'hugetlbfs_mount = [ ]',
];
const libvirtdConf = [
  'auth_unix_ro = "none"',
  'auth_unix_rw = "none"',
  'log_outputs = "2:file:/var/log/libvirt/libvirtd.log"',
];
const privateDirs = [
  'run',
  'lib',
  'etc',
  'cache',
  'log',
  'ram',
  'images',
  'boot',
  'mounts',
  'tmp',
  'run/lock',
  'log/qemu',
];

/** Laboratories side by side share the host's loopback: each takes displays from a range of its own. */
function displayPorts(root: string): readonly string[] {
  const window = createHash('sha256').update(root).digest().readUInt16BE() % 400;
  const first = 5900 + window * 50;
  return [`remote_display_port_min = ${first}`, `remote_display_port_max = ${first + 49}`];
}

/** Makes a laboratory's directory and mount namespace; libvirtd does not run yet. */
export async function prepareLab(options: LabOptions = {}): Promise<{ root: string; keeper: Keeper }> {
  if (process.getuid?.() !== 0) throw new Error('the test laboratory needs root (mounts, libvirtd)');
  const root = await mkdtemp(path.join(process.env['STILLPOINT_LAB_ROOT'] ?? tmpdir(), labPrefix));
  try {
    await chmod(root, 0o755);
    for (const name of privateDirs) await mkdir(path.join(root, name), { mode: 0o755, recursive: true });
    await writeConf(path.join(root, 'etc/qemu.conf'), [
      ...qemuConf,
      ...displayPorts(root),
      ...(options.qemuConf ?? []),
    ]);
    await writeConf(path.join(root, 'etc/libvirtd.conf'), [...libvirtdConf, ...(options.libvirtdConf ?? [])]);
    await writeFile(path.join(root, 'run', labMarker(root)), '');
    return { root, keeper: await Keeper.start(root) };
  } catch (error) {
    await sweepLab(root);
    throw error;
  }
}

/**
 * A libvirtd of its own, in a private mount namespace, under a subreaper. `/run`, `/var/lib/libvirt`,
 * `/etc/libvirt`, `/var/cache/libvirt` and `/var/log/libvirt` mean something else inside, so whatever is
 * tested runs there (`run`); `qemu:///system` is then this daemon. Everything stands below `root` and is
 * gone after `stop`, also when the test process is killed.
 */
export class PrivateLibvirtd implements AsyncDisposable {
  readonly root: string;
  /** For connections from outside of the namespace. */
  readonly uri: string;
  /** Where images go; QEMU's user can traverse it. */
  readonly imagesDir: string;
  /** A RAM disk inside the namespace. */
  readonly ramDir: string;
  readonly #keeper: Keeper;

  constructor(root: string, keeper: Keeper) {
    this.root = root;
    this.uri = `qemu+unix:///system?socket=${root}/run/libvirt/libvirt-sock`;
    this.imagesDir = path.join(root, 'images');
    this.ramDir = path.join(root, 'ram');
    this.#keeper = keeper;
  }

  /** Process whose mount namespace is the laboratory's. */
  get holderPid(): number {
    return this.#keeper.holderPid;
  }

  /** tini, the parent of libvirtd and of every QEMU. */
  get subreaperPid(): number {
    return this.#keeper.pid;
  }

  /** A path inside the namespace, as this process can open it. */
  outside(insidePath: string): string {
    return `/proc/${this.holderPid}/root${insidePath}`;
  }

  /** Runs a command inside; `cmd` may be any program of the machine. The working directory is `/`. */
  async run(cmd: string, args: readonly string[] = [], options: RunOptions = {}): Promise<RunResult> {
    const result = await this.background(cmd, args, { timeoutMs: 60_000, ...options }).done;
    if (options.check !== false && result.exitCode !== 0) {
      const end = result.exitCode === undefined ? result.signal : `exit code ${result.exitCode}`;
      throw new Error(`${cmd} ${args.join(' ')}: ${end}\n${result.stdout}\n${result.stderr}`.trimEnd());
    }
    return result;
  }

  /** Starts a command inside and returns at once. Without `timeoutMs` it runs until it ends. */
  background(cmd: string, args: readonly string[] = [], options: RunOptions = {}): BackgroundRun {
    const child = execa('nsenter', [...enterNamespace(this.holderPid), cmd, ...args], {
      env: { ...options.env },
      reject: false,
      killSignal: 'SIGKILL',
      input: options.input ?? '',
      timeout: options.timeoutMs ?? 0,
    });
    const { pid } = child;
    if (pid === undefined) throw new Error('nsenter did not start; run: npm run setup');
    const output = { stdout: '', stderr: '' };
    child.stdout.on('data', (chunk) => (output.stdout += String(chunk)));
    child.stderr.on('data', (chunk) => (output.stderr += String(chunk)));
    const done = child.then(({ exitCode, signal, stdout, stderr }) => ({ exitCode, signal, stdout, stderr }));
    const kill = (signal: NodeJS.Signals = 'SIGTERM'): void => void child.kill(signal);
    const kill9 = (): Promise<RunResult> => {
      kill('SIGKILL');
      return done;
    };
    return { pid, output: () => ({ ...output }), kill, kill9, done };
  }

  /** `virsh` on this daemon; what it prints. */
  async virsh(...args: readonly string[]): Promise<string> {
    return (await this.run('virsh', ['-q', '-c', 'qemu:///system', ...args])).stdout;
  }

  async libvirtdPid(): Promise<number> {
    return Number(await readFile(path.join(this.root, 'run/libvirtd.pid'), 'utf8'));
  }

  /** Ends libvirtd (guests go on) and waits until it is gone. */
  async killLibvirtd(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const pid = await this.libvirtdPid();
    process.kill(pid, signal);
    await processGone(pid);
  }

  /** Starts libvirtd, after ending it if it runs; returns when it accepts connections. */
  async restartLibvirtd(): Promise<void> {
    const pids = await labProcesses(this.root);
    const running = await this.libvirtdPid();
    if (pids.includes(running)) await this.killLibvirtd('SIGTERM');
    await this.startLibvirtd();
  }

  /**
   * Starts a libvirtd that does not run. It listens before its drivers are ready, and may still end then: a
   * first call tells.
   */
  async startLibvirtd(): Promise<void> {
    await this.#keeper.startLibvirtd();
    const first = await this.run('virsh', ['-q', '-c', 'qemu:///system', 'list'], { check: false });
    if (first.exitCode === 0) return;
    const log = await readFile(path.join(this.root, 'log/libvirtd.log'), 'utf8');
    throw new Error(`libvirtd does not answer: ${first.stderr}\n${log.slice(-2000)}`);
  }

  /** Process of a machine's QEMU; `undefined` if it does not run. */
  async qemuPid(name: string): Promise<number | undefined> {
    try {
      const pid = Number(await readFile(path.join(this.root, `run/libvirt/qemu/${name}.pid`), 'utf8'));
      return (await processFile(pid, 'cmdline')).includes('qemu') ? pid : undefined;
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return undefined;
      throw error;
    }
  }

  /** SIGKILL for a machine's QEMU; returns when the process is gone. */
  async killQemu(name: string): Promise<void> {
    const pid = await this.qemuPid(name);
    if (pid === undefined) throw new Error(`${name} does not run`);
    process.kill(pid, 'SIGKILL');
    await processGone(pid);
  }

  /** Ends every guest, daemon and mount and removes the directory; rejects if something is left. */
  async stop(): Promise<void> {
    await this.#keeper.stop();
    await sweepLab(this.root);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

/**
 * Waits until a process is gone or a zombie; before that it may still hold locks, such as that of a pid file. All of
 * its threads count: the first one is a zombie while others have yet to let go of the open files.
 */
export async function processGone(pid: number): Promise<void> {
  const look = async (): Promise<boolean> => {
    const threads = await readdir(`/proc/${pid}/task`).catch((error: unknown) => {
      if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return [];
      throw error;
    });
    const stats = await Promise.all(threads.map((thread) => processFile(pid, `task/${thread}/stat`)));
    // The command's name comes before the state, in parentheses, and may hold some itself.
    return stats.every((stat) => stat === '' || /^[ZX]/.test(stat.slice(stat.lastIndexOf(')') + 2)));
  };
  await eventually(look, { intervalMs: 5 });
}

function writeConf(file: string, lines: readonly string[]): Promise<void> {
  return writeFile(file, `${lines.join('\n')}\n`);
}
