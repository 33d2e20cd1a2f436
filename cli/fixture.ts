import { PassThrough } from 'node:stream';
import { noteSaid } from '../test/secrets.ts';
import { Terminal } from './terminal.ts';

/** A terminal for tests that keeps what was printed. */
export class RecordedTerminal {
  readonly terminal: Terminal;
  readonly stdin: PassThrough & { isTTY?: boolean };
  stdout = '';
  stderr = '';

  constructor(
    options: {
      readonly json?: boolean;
      readonly quiet?: boolean;
      readonly isTTY?: boolean;
      readonly rows?: number;
    } = {},
  ) {
    const { json = false, quiet = false, isTTY = false, rows } = options;
    this.stdin = Object.assign(new PassThrough(), { isTTY });
    this.terminal = new Terminal({
      stdin: this.stdin,
      stdout: { isTTY, columns: 60, write: (text) => (this.stdout += noted('stdout', text)) },
      stderr: { isTTY, columns: 60, rows, write: (text) => (this.stderr += noted('stderr', text)) },
      json,
      quiet,
      color: true,
    });
  }
}

function noted(stream: string, text: string): string {
  noteSaid(`${stream} of a terminal`, text);
  return text;
}
