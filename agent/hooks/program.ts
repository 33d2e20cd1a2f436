import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrno } from '../../common/errors.ts';
import { OutputTail } from './outputTail.ts';

/** A program that is told to end has so long to do it. */
const graceMs = 2_000;
/** What has left its group may hold its output open. */
const outputEndMs = 500;

export interface Program {
  /** Absolute path and arguments. */
  readonly command: readonly string[];
  /** All that it is given; nothing of ours is inherited. */
  readonly environment: Readonly<Record<string, string>>;
  readonly deadlineMs: number;
  readonly signal: AbortSignal;
  /** Called once it runs, and before anything is waited for; should it throw, the program is ended. */
  onStarted(pid: number): void;
}

/** How a program has ended. */
export interface ProgramEnd {
  readonly exitCode: number | null;
  /** By which it was ended. */
  readonly killedBy: NodeJS.Signals | null;
  readonly isLate: boolean;
  /** The last of what it has printed, on both its outputs; see `OutputTail`. */
  readonly output: string;
}

/**
 * Runs a program as the leader of a process group, to its end, its deadline or the signal's abort. At a deadline or an
 * abort the whole group is told to end, and killed two seconds later; what is left of the group after the program's
 * own end is killed, too.
 * @throws the system's error when it cannot be started; what `onStarted` throws
 */
export async function runProgram(program: Program): Promise<ProgramEnd> {
  const [file = '', ...args] = program.command;
  const child = spawn(file, args, {
    cwd: '/',
    env: program.environment,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const tail = new OutputTail();
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes: Buffer) => tail.add(bytes));
  const closed = once(child, 'close').catch(() => undefined);
  const { pid } = child;
  if (pid === undefined) {
    const [error] = await once(child, 'error');
    throw error;
  }
  let isLate = false;
  const group = new ProcessGroup(pid);
  const onAbort = (): void => group.end();
  const timer = setTimeout(() => {
    isLate = true;
    group.end();
  }, program.deadlineMs);
  program.signal.addEventListener('abort', onAbort, { once: true });
  try {
    const ended = exitOf(child);
    try {
      program.onStarted(pid);
    } catch (error) {
      group.kill();
      await ended;
      throw error;
    }
    if (program.signal.aborted) group.end();
    const { exitCode, killedBy } = await ended;
    group.kill();
    await Promise.race([closed, sleep(outputEndMs)]);
    return { exitCode, killedBy, isLate, output: tail.text() };
  } finally {
    clearTimeout(timer);
    program.signal.removeEventListener('abort', onAbort);
    child.stdout.destroy();
    child.stderr.destroy();
  }
}

async function exitOf(child: ChildProcess): Promise<Pick<ProgramEnd, 'exitCode' | 'killedBy'>> {
  await once(child, 'exit');
  return { exitCode: child.exitCode, killedBy: child.signalCode };
}

/** A program with everything that it has started and that has not left its group. */
class ProcessGroup {
  readonly #pid: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(pid: number) {
    this.#pid = pid;
  }

  /** Tells it to end, and kills it if it does not. */
  end(): void {
    if (this.#timer !== undefined) return;
    killGroup(this.#pid, 'SIGTERM');
    this.#timer = setTimeout(() => this.kill(), graceMs);
  }

  kill(): void {
    clearTimeout(this.#timer);
    killGroup(this.#pid, 'SIGKILL');
  }
}

/** Signals a whole process group; one that is gone is fine. */
export function killGroup(leaderPid: number, signal: 'SIGTERM' | 'SIGKILL'): void {
  try {
    process.kill(-leaderPid, signal);
  } catch (error) {
    if (!isErrno(error, 'ESRCH')) throw error;
  }
}
