import { mkdir, rm } from 'node:fs/promises';
import { basename } from 'node:path';
import * as z from 'zod';
import type { Lab, LabAgent, LabMachine } from '../test/lab/lab.ts';

/** Reading a hundred gibibytes takes some tools many minutes. */
const timeoutMs = 4 * 3600 * 1000;

export type Level = 'first' | 'increment';

/** A program that keeps backups of one volume, in a repository of its own. */
export interface Tool {
  /** Where the repository is. */
  readonly directory: string;
  /** A new and empty repository. */
  reset(): Promise<void>;
  backup(level: Level): Promise<void>;
  /** Throws when the newest backup was not made as it was meant. */
  check(level: Level): Promise<void>;
  /** Takes away what a backup leaves in the machine: another tool must be able to work with it. */
  letGo(): Promise<void>;
  /** The newest backup as files in an empty directory, which are on the disk then. */
  restore(to: string): Promise<void>;
  /** Reads every byte; `null` for a tool that has no such command. */
  readonly verify: (() => Promise<void>) | null;
}

/** Bytes that a directory takes on its file system. */
export async function diskBytes(lab: Lab, directory: string): Promise<number> {
  const { stdout } = await lab.run('du', ['-s', '--block-size=1', directory]);
  return Number.parseInt(stdout, 10);
}

/** `stillpoint ARGS…`, which must succeed. */
export async function runOurs(agent: LabAgent, args: readonly string[]): Promise<void> {
  const { exitCode, stderr } = await agent.run([...args, '--quiet'], { timeoutMs });
  if (exitCode !== 0) throw new Error(`stillpoint ${args[0]} failed: ${stderr}`);
}

/** An agent whose only storage is a repository in `directory`. */
export async function installVault(
  lab: Lab,
  setup: { readonly name: string; readonly command: string; readonly directory: string },
): Promise<LabAgent> {
  const { name, command, directory } = setup;
  const vault = { kind: 'repository', url: `file://${directory}`, keyFile: keyFileOf(directory) };
  return lab.installAgent({ name, command, storages: { vault } });
}

export function keyFileOf(directory: string): string {
  return `${directory}.key`;
}

/** An empty repository in the place of what is there. */
export async function resetVault(agent: LabAgent, directory: string): Promise<void> {
  await rm(directory, { recursive: true, force: true });
  await rm(keyFileOf(directory), { force: true });
  await runOurs(agent, ['storage', 'init', 'vault', '--no-recovery-key']);
}

/** Ours: commands from beginning to end, of a running machine, into a repository that is a directory. */
export class Stillpoint implements Tool {
  readonly directory: string;
  readonly agent: LabAgent;
  readonly #machine: string;

  constructor(agent: LabAgent, machine: LabMachine, directory: string) {
    this.agent = agent;
    this.#machine = machine.name;
    this.directory = directory;
  }

  get backupCommand(): readonly string[] {
    return ['backup', this.#machine, '--mode', 'disk'];
  }

  get verifyCommand(): readonly string[] {
    return ['verify', `${this.#machine}@latest`, '--data'];
  }

  restoreCommand(to: string): readonly string[] {
    return ['restore', `${this.#machine}@latest`, '--to', to, '--yes'];
  }

  reset(): Promise<void> {
    return resetVault(this.agent, this.directory);
  }

  backup(): Promise<void> {
    return runOurs(this.agent, this.backupCommand);
  }

  letGo(): Promise<void> {
    return runOurs(this.agent, ['release', this.#machine]);
  }

  restore(to: string): Promise<void> {
    return runOurs(this.agent, this.restoreCommand(to));
  }

  readonly verify = (): Promise<void> => runOurs(this.agent, this.verifyCommand);

  /** It also says where the time went. */
  async check(level: Level): Promise<void> {
    const wanted = level === 'first' ? 'full' : 'increment';
    const { stdout } = await this.agent.run(['show', `${this.#machine}@latest`, '--json']);
    const { volumes, steps } = shownSchema.parse(JSON.parse(stdout));
    const other = volumes.find(({ read }) => read !== wanted);
    if (other !== undefined)
      throw new Error(`${this.#machine} was read as ${other.read}: ${other.reason ?? 'no reason is told'}`);
    const told = steps.map(({ name, durationMs }) => `${name} ${Math.round(durationMs)} ms`).join(', ');
    process.stderr.write(`  ${this.#machine}: ${told}\n`);
  }
}

const shownSchema = z.looseObject({
  volumes: z.array(z.looseObject({ read: z.string(), reason: z.string().optional() })),
  steps: z.array(z.object({ name: z.string(), durationMs: z.number() })),
});

async function shell(
  lab: Lab,
  text: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<void> {
  await lab.run('sh', ['-c', `set -e\n${text}`, 'sh', ...args], { timeoutMs, env });
}

/** virtnbdbackup as Debian has it, of a running machine like ours: neither encrypted nor deduplicated. */
export class Virtnbdbackup implements Tool {
  readonly directory: string;
  readonly verify = null;
  readonly #lab: Lab;
  readonly #machine: string;
  readonly #options: string;

  constructor(lab: Lab, machine: LabMachine, directory: string, compression: 'none' | 'lz4') {
    this.#lab = lab;
    this.#machine = machine.name;
    this.directory = directory;
    this.#options = compression === 'lz4' ? '-z' : '';
  }

  reset(): Promise<void> {
    return rm(this.directory, { recursive: true, force: true });
  }

  async backup(level: Level): Promise<void> {
    const text = `virtnbdbackup -d "$1" -l "$2" ${this.#options} -o "$3" >/dev/null 2>"$3.log" || { cat "$3.log" >&2; exit 1; }`;
    await shell(this.#lab, text, [this.#machine, level === 'first' ? 'full' : 'inc', this.directory]);
  }

  /** It fails by itself where it finds no checkpoint that it made. */
  check(): Promise<void> {
    return Promise.resolve();
  }

  async letGo(): Promise<void> {
    const text =
      'for c in $(virsh checkpoint-list --name "$1"); do virsh -q checkpoint-delete "$1" "$c"; done';
    await shell(this.#lab, text, [this.#machine]);
  }

  async restore(to: string): Promise<void> {
    const text =
      'virtnbdrestore -n -i "$1" -o "$2" >/dev/null 2>"$1.log" || { cat "$1.log" >&2; exit 1; }\nsync "$2"/*';
    await shell(this.#lab, text, [this.directory, to]);
  }
}

/** What restic and borg have in common: they read a raw file, of no machine. */
abstract class FileTool implements Tool {
  readonly directory: string;
  abstract readonly verify: () => Promise<void>;
  protected abstract readonly env: Readonly<Record<string, string>>;
  protected readonly image: string;
  readonly #lab: Lab;

  constructor(lab: Lab, image: string, directory: string) {
    this.#lab = lab;
    this.image = image;
    this.directory = directory;
  }

  async reset(): Promise<void> {
    await rm(this.directory, { recursive: true, force: true });
    await rm(this.home, { recursive: true, force: true });
    await mkdir(this.home);
    await this.init();
  }

  check(): Promise<void> {
    return Promise.resolve();
  }

  letGo(): Promise<void> {
    return Promise.resolve();
  }

  abstract backup(level: Level): Promise<void>;
  abstract restore(to: string): Promise<void>;
  protected abstract init(): Promise<void>;

  /** For caches and settings; made anew with the repository. */
  protected get home(): string {
    return `${this.directory}.home`;
  }

  protected run(text: string, ...args: readonly string[]): Promise<void> {
    return shell(this.#lab, text, args, this.env);
  }
}

/** restic as Debian has it: it finds the boundaries of chunks by content, and compresses with zstd. */
export class Restic extends FileTool {
  protected get env(): Readonly<Record<string, string>> {
    return { RESTIC_REPOSITORY: this.directory, RESTIC_PASSWORD: 'bench', RESTIC_CACHE_DIR: this.home };
  }

  protected init(): Promise<void> {
    return this.run('restic init -q --repository-version 2');
  }

  backup(): Promise<void> {
    return this.run('restic backup -q --compression auto "$1"', this.image);
  }

  restore(to: string): Promise<void> {
    return this.run('restic restore -q latest --target "$1"\nfind "$1" -type f -exec sync {} +', to);
  }

  readonly verify = (): Promise<void> => this.run('restic check -q --read-data');
}

/** borg as Debian has it, with what its manual advises for images of volumes: chunks of one size, holes left out. */
export class Borg extends FileTool {
  #archives = 0;

  get #archive(): string {
    return `${basename(this.image)}-${this.#archives}`;
  }

  protected get env(): Readonly<Record<string, string>> {
    return { BORG_REPO: this.directory, BORG_PASSPHRASE: 'bench', BORG_BASE_DIR: this.home };
  }

  protected init(): Promise<void> {
    return this.run('borg init -e repokey-blake2');
  }

  backup(): Promise<void> {
    this.#archives += 1;
    const text = 'borg create --sparse --chunker-params fixed,1048576 --compression zstd,1 "::$1" "$2"';
    return this.run(text, this.#archive, this.image);
  }

  restore(to: string): Promise<void> {
    const text = 'cd "$2"\nborg extract --sparse "::$1"\nfind . -type f -exec sync {} +';
    return this.run(text, this.#archive, to);
  }

  readonly verify = (): Promise<void> => this.run('borg check --verify-data');
}
