import { mkdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { stringify } from 'yaml';
import type { BackgroundRun, PrivateLibvirtd, RunOptions, RunResult } from './libvirtd.ts';
import { SecretWatch } from './secretWatch.ts';

/** Run from the sources. */
const commandOfSources = path.resolve(import.meta.dirname, '../../bin/stillpoint');

export interface AgentSetup {
  /** Storages of the configuration; one directory `local` below the laboratory if not given. */
  readonly storages?: Readonly<Record<string, unknown>> | undefined;
  /** Keys of `agent` that differ. */
  readonly agent?: Readonly<Record<string, unknown>> | undefined;
  /** Other top level keys: `policies`, `machines`, … */
  readonly rest?: Readonly<Record<string, unknown>> | undefined;
  /** Tells several agents of one laboratory apart; `agent` if not given. */
  readonly name?: string | undefined;
  /** The program, where it is not that of the sources. */
  readonly command?: string | undefined;
}

/** How a call of `stillpoint` ended. */
export interface AgentResult extends RunResult {
  /**
   * What it printed with `--json`.
   *
   * @throws Error with everything printed, if that is not JSON.
   */
  json(): unknown;
}

/** An agent installed in a laboratory: a configuration, a state directory, and calls of the program. */
export class LabAgent {
  readonly configFile: string;
  readonly stateDir: string;
  /** Directory of the storage `local`, if the storages were not chosen. */
  readonly storageDir: string;
  readonly command: string;
  /** What its programs say passes through this. */
  readonly secrets = new SecretWatch();
  readonly #libvirtd: PrivateLibvirtd;

  private constructor(libvirtd: PrivateLibvirtd, home: string, command: string) {
    this.#libvirtd = libvirtd;
    this.command = command;
    this.configFile = path.join(home, 'config.yaml');
    this.stateDir = path.join(home, 'state');
    this.storageDir = path.join(home, 'backups');
  }

  static async install(libvirtd: PrivateLibvirtd, setup: AgentSetup = {}): Promise<LabAgent> {
    const home = path.join(libvirtd.root, setup.name ?? 'agent');
    const agent = new LabAgent(libvirtd, home, setup.command ?? commandOfSources);
    await mkdir(agent.stateDir, { recursive: true });
    await mkdir(agent.storageDir);
    await agent.configure(setup);
    return agent;
  }

  /** Replaces the configuration. */
  async configure(setup: AgentSetup): Promise<void> {
    const config = {
      agent: {
        // Inside the namespace this is the private daemon.
        libvirtUri: 'qemu:///system',
        stateDir: this.stateDir,
        socket: '/run/stillpoint/agent.sock',
        ramDisk: this.#libvirtd.ramDir,
        ...setup.agent,
      },
      storages: setup.storages ?? { local: { kind: 'directory', path: this.storageDir } },
      ...setup.rest,
    };
    this.secrets.configure(config.storages);
    await writeFile(this.configFile, stringify(config), { mode: 0o600 });
  }

  /** `stillpoint ARGS… --config FILE`, to its end; it does not throw when that fails. */
  async run(args: readonly string[], options: Omit<RunOptions, 'check'> = {}): Promise<AgentResult> {
    return withJson(await this.background(args, { timeoutMs: 300_000, ...options }).done);
  }

  /** The same, not waited for. `pid` is that of Node.js, so `kill9()` hits the agent itself. */
  background(args: readonly string[], options: Omit<RunOptions, 'check'> = {}): BackgroundRun {
    const run = this.#libvirtd.background(this.command, [...args, '--config', this.configFile], options);
    return this.secrets.over(run, args);
  }

  /** Forgets all jobs: as on a host where the state directory was lost. */
  async loseState(): Promise<void> {
    await rm(this.stateDir, { recursive: true });
    await mkdir(this.stateDir);
  }
}

/** Adds the reader of what was printed. */
export function withJson(result: RunResult): AgentResult {
  const json = (): unknown => {
    try {
      return JSON.parse(result.stdout);
    } catch (error) {
      const printed = `${result.stdout}\n${result.stderr}`.trim();
      throw new Error(`no JSON was printed (exit code ${result.exitCode}):\n${printed}`, { cause: error });
    }
  };
  return { ...result, json };
}
