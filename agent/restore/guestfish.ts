import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { open, type FileHandle } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { canonicalPath } from '../../common/files.ts';
import { killGroup } from './appliance.ts';
import { RestoreError } from './errors.ts';
import { endProcessesWith } from './processes.ts';

/*
 * A guestfish(1) that is told one command at a time on its standard input. What it answers stands on its standard
 * output until a mark that no guest can know; what it complains of goes into a file, which has it before the mark is
 * written, so that both are known when the mark has come.
 */

/** `fgets` of guestfish takes so many bytes of a line with the newline; the rest would be a command of its own. */
const lineBytesMax = 8191 - 1;
const answerBytesMax = 8 * 1024 * 1024;
const answerMs = 60_000;
const saidBytesMax = 2000;
/** How long it may take to end its virtual machine by itself. */
const endMs = 5000;

export interface GuestfishStart {
  /** The program with all that starts it. */
  readonly command: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  readonly directory: string;
  /** Takes what it complains of. */
  readonly logFile: string;
  readonly signal: AbortSignal;
}

export interface AskOptions {
  readonly bytesMax?: number;
  readonly answerMs?: number;
}

/** A guestfish that runs. */
export class Guestfish implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #log: FileHandle;
  readonly #signal: AbortSignal;
  readonly #ended: Promise<void>;
  readonly #mark = `${randomBytes(16).toString('hex')}\n`;
  #saidBytes = 0;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(child: ChildProcess, log: FileHandle, signal: AbortSignal) {
    this.#child = child;
    this.#log = log;
    this.#signal = signal;
    // What cannot be started tells so by `error`, and closes.
    this.#ended = new Promise((done) => {
      child.on('error', () => undefined).once('close', () => done());
    });
    // Nothing that is written to one that has gone is missed: its end is what is told.
    child.stdin?.on('error', () => undefined);
    signal.addEventListener('abort', this.#kill, { once: true });
  }

  /** Starts it, in a process group of its own with all that it starts. @throws RestoreError FILE_SYSTEM_UNSUPPORTED */
  static async start({
    command,
    environment,
    directory,
    logFile,
    signal,
  }: GuestfishStart): Promise<Guestfish> {
    signal.throwIfAborted();
    const log = await open(logFile, 'a+', 0o600);
    const [program = '', ...args] = command;
    const child = spawn(program, args, {
      cwd: directory,
      env: environment,
      detached: true,
      stdio: ['pipe', 'pipe', log.fd],
    });
    const guestfish = new Guestfish(child, log, signal);
    try {
      await once(child, 'spawn');
      return guestfish;
    } catch (error) {
      await guestfish[Symbol.asyncDispose]();
      throw new RestoreError('FILE_SYSTEM_UNSUPPORTED', `${program} cannot be started`, { cause: error });
    }
  }

  /**
   * Gives it one command, when those before are answered.
   * @param args bytes, one character for each (latin1)
   * @throws RestoreError FILE_UNREADABLE: it complained, with what it said; it has ended or did not answer
   */
  ask(command: string, args: readonly string[] = [], options: AskOptions = {}): Promise<Buffer> {
    const answer = this.#last.then(() => this.#askNow(command, args, options));
    this.#last = answer.catch(() => undefined);
    return answer;
  }

  async #askNow(command: string, args: readonly string[], options: AskOptions): Promise<Buffer> {
    this.#signal.throwIfAborted();
    // With `-` a command that fails does not end it.
    const line = [`-${command}`, ...args.map(quoted)].join(' ');
    if (line.length > lineBytesMax) throw unreadable(command, 'its path is too long');
    const answer = this.#answer(command, options);
    this.#child.stdin?.write(`${line}\necho ${this.#mark}`, 'latin1');
    const output = await answer;
    const said = await this.#said();
    if (said !== '') throw unreadable(command, said);
    return output;
  }

  /** What stands on its output before the mark, which is the last that it writes. */
  #answer(
    command: string,
    { bytesMax = answerBytesMax, answerMs: ms = answerMs }: AskOptions,
  ): Promise<Buffer> {
    const { stdout } = this.#child;
    const mark = Buffer.from(this.#mark);
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
    const pieces: Buffer[] = [];
    let bytes = 0;
    let tail = Buffer.alloc(0);
    let isOver = false;
    const fail = (why: string): void => {
      this.#kill();
      reject(unreadable(command, why));
    };
    const take = (piece: Buffer): void => {
      pieces.push(piece);
      bytes += piece.length;
      tail = Buffer.concat([tail, piece.subarray(-mark.length)]).subarray(-mark.length);
      if (tail.equals(mark)) resolve(Buffer.concat(pieces, bytes).subarray(0, bytes - mark.length));
      else if (bytes > bytesMax + mark.length) fail(`the answer has more than ${bytesMax} bytes`);
    };
    const gone = async (): Promise<void> => {
      if (isOver) return;
      if (this.#signal.aborted) reject(this.#signal.reason);
      else reject(unreadable(command, `guestfish has ended: ${await this.#said()}`));
    };
    const timer = setTimeout(() => fail(`no answer within ${ms / 1000} s`), ms);
    stdout?.on('data', take);
    void this.#ended.then(gone);
    return promise.finally(() => {
      isOver = true;
      clearTimeout(timer);
      stdout?.off('data', take);
    });
  }

  /** What it complained of since this was last asked. */
  async #said(): Promise<string> {
    const { size } = await this.#log.stat();
    const from = Math.max(this.#saidBytes, size - saidBytesMax);
    this.#saidBytes = size;
    if (from >= size) return '';
    const { buffer, bytesRead } = await this.#log.read(Buffer.alloc(size - from), 0, size - from, from);
    return buffer.toString('latin1', 0, bytesRead).trim();
  }

  /** All that it has started belongs to its group. */
  readonly #kill = (): void => {
    killGroup(this.#child.pid);
  };

  /** Ends it; it takes its virtual machine along. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin?.end();
    const timer = setTimeout(this.#kill, endMs);
    await this.#ended;
    clearTimeout(timer);
    // One that did not end in order may have left its virtual machine, in the same group.
    if (this.#child.exitCode !== 0) this.#kill();
    this.#signal.removeEventListener('abort', this.#kill);
    await this.#log.close();
  }
}

/** Everything of libguestfs in a directory of a look, for its recovery. */
export function guestfsDirectory(directory: string): string {
  return join(directory, 'gf');
}

/** Ends what reads volumes of a look by libguestfs, after its process has died. */
export async function endGuestfs(directory: string): Promise<void> {
  const places = [guestfsDirectory(directory), guestfsDirectory(await canonicalPath(directory))];
  await endProcessesWith(
    ([program = '', ...args]) =>
      /^(setpriv$|guestfish$|qemu-(system|kvm))/.test(basename(program)) &&
      args.some((arg) => places.some((place) => arg.includes(`${place}/`))),
  );
}

/**
 * An argument of a command of guestfish as it reads it (guestfish(1), "QUOTING"): in double quotes, with everything
 * that could mean something written as `\xHH`. So neither a newline, which ends a command, nor a quote, a pipe, `!`,
 * `<!` or `~` is ever seen as one.
 * @param argument bytes, one character for each
 * @throws RestoreError FILE_UNREADABLE: it has a NUL, which no name can have
 */
export function quoted(argument: string): string {
  if (/[\0\u0100-\uffff]/.test(argument)) throw unreadable('quoting', 'it is no name of a file');
  const escaped = argument.replaceAll(
    /[^A-Za-z0-9/._+,:=@\x80-\xff-]/g,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
  return `"${escaped}"`;
}

function unreadable(what: string, why: string): RestoreError {
  return new RestoreError(
    'FILE_UNREADABLE',
    `libguestfs cannot read (${what.slice(0, 100)}): ${why.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 500)}`,
    {
      hint: 'stillpoint verify --data BACKUP says whether the backup is as it was stored; then the file system of the guest is damaged',
    },
  );
}
