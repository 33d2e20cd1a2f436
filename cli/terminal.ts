import { createInterface } from 'node:readline/promises';
import { type Readable, Writable } from 'node:stream';
import { type ErrorRecord, errorRecord, isErrno } from '../common/errors.ts';
import {
  type Column,
  printable,
  render,
  safeJson,
  styled,
  tableLines,
  type Text,
  widthOf,
} from './output.ts';

/** As much of a stream as printing needs. */
export interface OutputStream {
  write(text: string): unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
  readonly rows?: number | undefined;
}

export interface TerminalOptions {
  readonly stdout: OutputStream;
  readonly stderr: OutputStream;
  readonly stdin: Readable & { readonly isTTY?: boolean | undefined };
  /** Print results as JSON. */
  readonly json: boolean;
  /** No progress and no remarks. */
  readonly quiet: boolean;
  /** Colours where the stream is a terminal. */
  readonly color: boolean;
}

/**
 * Results go to stdout, everything else to stderr. Nothing of what is printed can move the cursor or change the
 * terminal: each piece of text is made harmless here, at the only door.
 */
export class Terminal {
  readonly json: boolean;
  readonly quiet: boolean;
  /** Progress can be drawn in place. */
  readonly isLive: boolean;
  /** What is told can be drawn in place, because results and progress go to one terminal. */
  readonly draws: boolean;
  /** Somebody is there to be asked. */
  readonly isInteractive: boolean;
  readonly #options: TerminalOptions;
  #live: readonly string[] = [];

  constructor(options: TerminalOptions) {
    this.#options = options;
    this.json = options.json;
    this.quiet = options.quiet;
    this.isLive = options.stderr.isTTY === true && !options.quiet;
    this.draws = this.isLive && options.stdout.isTTY === true;
    this.isInteractive = options.stdin.isTTY === true && options.stderr.isTTY === true;
  }

  /** One line of the result. */
  out(...parts: readonly Text[]): void {
    this.#line(this.#options.stdout, parts);
  }

  /** One line beside the result. */
  err(...parts: readonly Text[]): void {
    this.#line(this.#options.stderr, parts);
  }

  /** A remark that `--quiet` leaves out. */
  remark(...parts: readonly Text[]): void {
    if (!this.quiet) this.err(...parts);
  }

  /** One result for machines, on one line. */
  object(value: unknown): void {
    this.#print(this.#options.stdout, safeJson(value));
  }

  table(columns: readonly Column[], rows: readonly (readonly Text[])[]): void {
    for (const line of tableLines(columns, rows)) this.out(...line);
  }

  warning(message: string): void {
    this.err(styled('yellow', 'warning: '), message);
  }

  /** The only form in which errors are printed: `CODE: what happened`, then `hint: …`; with `--json` an object. */
  error(error: unknown, about?: string): void {
    this.record(errorRecord(error), about);
  }

  /** The same for an error that has been recorded. `about`: the machine or storage, where several are at work. */
  record({ code, message, hint, retryable }: ErrorRecord, about?: string): void {
    if (this.json) {
      this.#print(
        this.#options.stderr,
        safeJson({ error: { code, message, hint: hint ?? null, retryable, about: about ?? null } }),
      );
      return;
    }
    this.#printable([styled('red', `${code}: `)], about === undefined ? message : `${about}: ${message}`);
    if (hint !== undefined) this.#printable([styled('bold', 'hint: ')], hint);
  }

  /** Asks on stderr, if somebody is at a terminal; rejects with AbortError when `signal` aborts. An end of input is an empty answer. */
  async ask(question: string, options: { readonly signal?: AbortSignal } = {}): Promise<string> {
    const { stdin, stderr } = this.#options;
    const isTyped = stdin.isTTY === true;
    if (isTyped) stderr.write(`${render(question, false)} `);
    const reader = createInterface({ input: stdin });
    const abort = (): void => reader.close();
    options.signal?.addEventListener('abort', abort);
    try {
      for await (const line of reader) return line.trim();
      // Nobody pressed Enter: what follows begins on a line of its own.
      if (isTyped) stderr.write('\n');
      return '';
    } finally {
      options.signal?.removeEventListener('abort', abort);
      reader.close();
    }
  }

  /**
   * Asks for what nobody may see: on a terminal it is not shown while it is typed. Blanks count. An end of input is an
   * empty answer to all that was not answered, and Ctrl-C ends the process as it does anywhere else.
   */
  async askSecrets(...questions: readonly string[]): Promise<readonly string[]> {
    const { stdin, stderr } = this.#options;
    const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
    const isTyped = stdin.isTTY === true;
    const reader = createInterface({ input: stdin, ...(isTyped ? { output: nowhere, terminal: true } : {}) });
    reader.on('SIGINT', () => {
      reader.close();
      stderr.write('\n');
      process.kill(process.pid, 'SIGINT');
    });
    const lines = reader[Symbol.asyncIterator]();
    const answers: string[] = [];
    try {
      for (const question of questions) {
        if (isTyped) stderr.write(`${render(question, false)} `);
        const line = await lines.next();
        if (isTyped) stderr.write('\n');
        answers.push(line.done === true ? '' : line.value);
      }
      return answers;
    } finally {
      reader.close();
    }
  }

  /** Lines that stay at the bottom of a terminal and are drawn anew with each call; none takes them away. */
  live(lines: readonly (readonly Text[])[]): void {
    if (!this.isLive) return;
    // A terminal that does not know its width says 0.
    const columns = (this.#options.stderr.columns || 80) - 1;
    this.#clearLive();
    // What has left the screen cannot be drawn over.
    const rows = this.#options.stderr.rows || Infinity;
    this.#live = lines.slice(0, Math.max(1, rows - 1)).map((line) => this.#fit(line, columns));
    this.#drawLive();
  }

  #fit(parts: readonly Text[], columns: number): string {
    let left = columns;
    let text = '';
    for (const part of parts) {
      const width = widthOf(part);
      const plain = typeof part === 'string' ? part : part.text;
      const shown = width <= left ? part : cut(printable(plain), left);
      text += render(shown, this.#options.color);
      left -= width;
      if (left <= 0) break;
    }
    return text;
  }

  /** Our own texts may have several lines; the later ones are indented, so that none can pass for another message. */
  #printable(start: readonly Text[], text: string): void {
    const [first = '', ...others] = text.split('\n');
    this.err(...start, first);
    for (const line of others) this.err('  ', line);
  }

  #line(stream: OutputStream, parts: readonly Text[]): void {
    const color = this.#options.color && stream.isTTY === true;
    this.#print(
      stream,
      parts
        .map((part) => render(part, color))
        .join('')
        .trimEnd(),
    );
  }

  #print(stream: OutputStream, line: string): void {
    this.#clearLive();
    stream.write(`${line}\n`);
    this.#drawLive();
  }

  #clearLive(): void {
    if (this.#live.length > 0) this.#options.stderr.write(`\u001b[${this.#live.length}A\r\u001b[J`);
  }

  #drawLive(): void {
    if (this.#live.length > 0) this.#options.stderr.write(`${this.#live.join('\n')}\n`);
  }
}

function cut(text: string, columns: number): string {
  return Array.from(text).slice(0, Math.max(columns, 0)).join('');
}

/**
 * Nothing that happens to what a command tells may end it in the middle of its work, with a machine down: what a
 * reader that went away would have read is dropped (`stillpoint … | head`), and a full log file is told at the end.
 * @returns what was lost, if anything that somebody may still want to read
 */
export function outliveReaders(streams: readonly NodeJS.WriteStream[]): () => Error | undefined {
  let lost: Error | undefined;
  for (const stream of streams) {
    stream.on('error', (error) => {
      if (!isErrno(error, 'EPIPE') && !isErrno(error, 'EIO')) lost ??= error;
    });
  }
  return () => lost;
}
