import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type BackgroundRun, eventually, type Lab } from '../../lab/lab.ts';
import { labProcesses, processFile } from '../../lab/sweep.ts';
import { type Command, type EndedJob, type Line, lineSchema } from './command.ts';

const withNode = path.resolve(import.meta.dirname, '../../../scripts/with-node');
const program = path.join(import.meta.dirname, 'agent.ts');

const runDeadlineMs = 300_000;
/** For the children of a killed agent to notice, and for threads of it that wait for a busy disk. */
const childDeadlineMs = 60_000;

/** How an agent has ended, and what it said. */
export interface RunEnd {
  readonly exitCode: number | undefined;
  readonly signal: string | undefined;
  /** The named moments that it passed, in order. */
  readonly points: readonly string[];
  readonly jobs: readonly EndedJob[];
  /** What the offline repair did, by image. */
  readonly repaired: readonly { readonly image: string; readonly action: string }[];
  /** Its log. */
  readonly log: string;
}

/** A running agent under test. */
export class AgentRun {
  readonly ended: Promise<RunEnd>;
  readonly #process: BackgroundRun;
  readonly #command: Command;
  readonly #lab: Lab;

  private constructor(lab: Lab, process: BackgroundRun, command: Command) {
    this.#lab = lab;
    this.#process = process;
    this.#command = command;
    this.ended = this.#end();
    // Whoever waits for it hears of a failure; until then nobody need have.
    this.ended.catch(() => undefined);
  }

  async #end(): Promise<RunEnd> {
    const { pid, done } = this.#process;
    await eventually(async () => (await processFile(pid, 'cmdline')) === '', {
      timeoutMs: runDeadlineMs,
      intervalMs: 50,
    });
    // Its output stays open as long as a child of it lives: none may outlive it.
    const waiting = new AbortController();
    const late = sleep(childDeadlineMs, undefined, { signal: waiting.signal }).then(
      async () => {
        const left = await describeProcesses(this.#lab);
        throw new Error(`a child of the agent lives on, one of:\n${left.join('\n')}`);
      },
      () => done,
    );
    const { exitCode, signal, stdout, stderr } = await Promise.race([
      done.finally(() => waiting.abort()),
      late,
    ]);
    // execa takes the last line's end away.
    const lines = linesOf(`${stdout}\n`);
    return {
      exitCode,
      signal,
      points: lines.flatMap((line) => ('point' in line ? [line.point] : [])),
      jobs: lines.flatMap((line) => ('job' in line ? [line.job] : [])),
      repaired: lines.flatMap((line) => ('repaired' in line ? line.repaired : [])),
      log: stderr,
    };
  }

  static start(lab: Lab, command: Command, env: Readonly<Record<string, string>>): AgentRun {
    const args = ['node', program, JSON.stringify(command)];
    // The test runner's own hooks have no business in the agent.
    return new AgentRun(
      lab,
      lab.background(withNode, args, { env: { NODE_OPTIONS: '', ...env }, timeoutMs: runDeadlineMs }),
      command,
    );
  }

  /** Waits until it stands still at the moment that was asked for. */
  async halted(): Promise<void> {
    await this.#until((line) => 'halted' in line);
  }

  /** Waits until it has passed a named moment. */
  async passed(point: string): Promise<void> {
    await this.#until((line) => 'point' in line && line.point === point);
  }

  async #until(wanted: (line: Line) => boolean): Promise<void> {
    let over = false;
    void this.#process.done.then(() => (over = true));
    const found = await eventually(
      () => linesOf(this.#process.output().stdout).some(wanted) || (over && 'over'),
      { timeoutMs: 60_000, intervalMs: 5 },
    );
    if (found === 'over' && !linesOf(this.#process.output().stdout).some(wanted)) {
      throw new Error(
        `the agent ended before that:\n${this.#process.output().stdout}\n${this.#process.output().stderr}`,
      );
    }
  }

  /** Lets it go on. */
  async release(): Promise<void> {
    if (this.#command.halt === undefined) throw new Error('it was not told to halt');
    await writeFile(this.#command.halt.gate, 'go');
  }

  async kill9(): Promise<RunEnd> {
    this.#process.kill('SIGKILL');
    return this.ended;
  }
}

/** Whole lines only: the last one may be half of one. */
function linesOf(output: string): readonly Line[] {
  const whole = output.slice(0, output.lastIndexOf('\n') + 1);
  return whole.split('\n').flatMap((line) => (line === '' ? [] : [lineSchema.parse(JSON.parse(line))]));
}

/** State and command line of everything that runs in a laboratory. */
async function describeProcesses(lab: Lab): Promise<readonly string[]> {
  const pids = await labProcesses(lab.root);
  return Promise.all(
    pids.map(async (pid) => {
      const status = await processFile(pid, 'status');
      const commandLine = (await processFile(pid, 'cmdline')).replaceAll('\0', ' ').slice(0, 200);
      return `${pid} ${/^State:\s*(.*)$/m.exec(status)?.[1]} ${commandLine}`;
    }),
  );
}
