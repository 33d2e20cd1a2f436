import { PassThrough } from 'node:stream';
import { Terminal } from './terminal.ts';

/** A terminal for tests that keeps what was printed. */
export class RecordedTerminal {
  readonly terminal: Terminal;
  readonly stdin: PassThrough & { isTTY?: boolean };
  stdout = '';
  stderr = '';

  constructor(options: { readonly json?: boolean; readonly quiet?: boolean; readonly isTTY?: boolean } = {}) {
    const { json = false, quiet = false, isTTY = false } = options;
    this.stdin = Object.assign(new PassThrough(), { isTTY });
    this.terminal = new Terminal({
      stdin: this.stdin,
      stdout: { isTTY, columns: 60, write: (text) => (this.stdout += text) },
      stderr: { isTTY, columns: 60, write: (text) => (this.stderr += text) },
      json,
      quiet,
      color: true,
    });
  }
}
