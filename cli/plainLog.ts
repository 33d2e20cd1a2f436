import * as z from 'zod';
import type { Terminal } from './terminal.ts';

const warnLevel = 40;
const words: Readonly<Record<number, string>> = {
  10: 'trace',
  20: 'debug',
  30: 'info',
  40: 'warning',
  50: 'error',
  60: 'fatal',
};

const logLine = z.looseObject({ level: z.number(), time: z.string(), msg: z.string().default('') });
const loggedError = z.object({ code: z.string().optional(), message: z.string() });

/** The destination of a command's log: a person's terminal gets sentences, never JSON. */
export class PlainLog {
  readonly #terminal: Terminal;
  readonly #verbose: boolean;

  constructor(terminal: Terminal, verbose: boolean) {
    this.#terminal = terminal;
    this.#verbose = verbose;
  }

  /** One line as the logger writes it. */
  write(line: string): void {
    const { level, time, msg, pid: _, ...rest } = logLine.parse(JSON.parse(line));
    if (this.#verbose) {
      const details = Object.entries(rest).map(([key, value]) => `${key}=${briefly(value)}`);
      this.#terminal.err(`${time} ${words[level] ?? 'log'}: ${[msg, ...details].join(' ')}`);
    } else if (level >= warnLevel && rest['jobId'] === undefined) {
      // What concerns a job its verb tells, with the name of the machine.
      this.#terminal.warning(rest['err'] === undefined ? msg : `${msg}: ${briefly(rest['err'])}`);
    }
  }
}

function briefly(value: unknown): string {
  const error = loggedError.safeParse(value);
  if (error.success)
    return error.data.code === undefined ? error.data.message : `${error.data.code}: ${error.data.message}`;
  return typeof value === 'string' ? value : JSON.stringify(value);
}
