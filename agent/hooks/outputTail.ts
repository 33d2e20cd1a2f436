import { withoutSuspects } from '../../common/redaction.ts';

/** What is kept while a program runs, and what of it in the end. */
const keptBytes = 64 * 1024;
const toldLength = 4096;

/** The end of what a program prints, in bounded memory. */
export class OutputTail {
  #kept = Buffer.alloc(0);
  #isCut = false;

  add(bytes: Buffer): void {
    const all = Buffer.concat([this.#kept, bytes]);
    this.#isCut ||= all.length > keptBytes;
    this.#kept = all.subarray(Math.max(0, all.length - keptBytes));
  }

  /** The last of it as text: without secrets (`withoutSuspects`), and without what would control a terminal. */
  text(): string {
    const whole = this.#kept.toString('utf8');
    // A line that has lost its beginning may hold a secret whose name is not there any more.
    const lines = this.#isCut ? whole.slice(whole.indexOf('\n') + 1) : whole;
    const plain = withoutSuspects(lines).replaceAll(/\p{Cc}/gu, (control) =>
      /[\n\t]/.test(control) ? control : '',
    );
    const text = plain.trimEnd();
    return text.length > toldLength ? `…${text.slice(-toldLength)}` : text;
  }
}
