/**
 * What `npm test` prints: one line for each test file, failures in full, and `N passed, N failed` last.
 *
 * What is counted are tests, not files nor assertions: every subtest without subtests of its own, and a file
 * or subtest that fails although everything in it passed (it crashed, ran out of time, broke its plan).
 * With STILLPOINT_TALLY the numbers are appended to that file instead, so that several runs can be added up, and the
 * seconds of each file to one beside it, so that the slowest can be told.
 */
import { appendFileSync } from 'node:fs';
import { Transform } from 'node:stream';
import { Parser } from 'tap-parser';
import { stringify } from 'yaml';

/** @typedef {{ name: string, depth: number, children: Node[], failures: Failure[], comments: string[], skipped: number, failed: number, passed: number }} Node */
/** @typedef {{ path: string[], message: string, diag: unknown }} Failure */

// tap demands a default export.
// oxlint-disable-next-line import/no-default-export
export default class Reporter extends Transform {
  #parser = new Parser();
  #root = newNode('', -1);

  constructor() {
    super();
    this.#watch(this.#parser, this.#root);
    this.#parser.on('bailout', (reason) => this.push(`Bail out! ${reason}\n`));
  }

  /** @param {Buffer} chunk @param {string} _encoding @param {() => void} done */
  _transform(chunk, _encoding, done) {
    this.#parser.write(chunk);
    done();
  }

  /** @param {() => void} done */
  _flush(done) {
    this.#parser.once('complete', (results) => {
      const root = this.#root;
      if (!results.ok && root.failed === 0) {
        this.#failOutside({
          path: [],
          message: 'the run failed outside of its tests',
          diag: results.failures,
        });
      }
      if (process.env['STILLPOINT_TALLY']) {
        appendFileSync(process.env['STILLPOINT_TALLY'], `${root.passed} ${root.failed} ${root.skipped}\n`);
      } else {
        this.push(`${summary(root)}\n`);
      }
      done();
    });
    this.#parser.end();
  }

  /** @param {Parser} parser @param {Node} node */
  #watch(parser, node) {
    let child = /** @type {Node | undefined} */ (undefined);
    parser.on('child', (childParser) => {
      child = newNode(childParser.name, node.depth + 1);
      this.#watch(childParser, child);
    });
    parser.on('assert', (result) => {
      if (result.closingTestPoint && child !== undefined) {
        this.#close(node, child, result);
        child = undefined;
      } else if (result.skip || result.todo) {
        node.skipped += 1;
      } else if (!result.ok) {
        const failure = { path: [], message: result.name, diag: result.diag };
        if (node.depth >= 0) node.failures.push(failure);
        else this.#failOutside(failure);
      }
    });
    parser.on('comment', (comment) => {
      const text = comment.replace(/^\s*# ?/, '').trim();
      if (text !== '' && !/^(Subtest: |time=|No coverage|\{ total: |test count\()/.test(text))
        node.comments.push(text);
    });
    // What a test prints itself, such as from console.log.
    parser.on('extra', (text) => this.push(text));
  }

  /** A subtest or a file has ended: its numbers go to what it is part of. */
  #close(parent, child, result) {
    const failedInside = child.failed;
    if (result.skip || result.todo) {
      child.skipped += 1;
    } else if (!result.ok && failedInside === 0) {
      child.failed = 1;
      if (child.failures.length === 0)
        child.failures.push({ path: [], message: result.name, diag: result.diag });
    } else if (
      child.children.length === 0 &&
      child.failed === 0 &&
      (child.depth > 0 || child.skipped === 0)
    ) {
      child.passed += 1;
    }
    for (const { path, ...failure } of child.failures) {
      parent.failures.push({ path: child.depth === 0 ? path : [child.name, ...path], ...failure });
    }
    parent.children.push(child);
    parent.passed += child.passed;
    parent.failed += child.failed;
    parent.skipped += child.skipped;
    if (child.depth === 0) this.#printFile(child, result.time ?? child.time);
    else parent.comments.push(...child.comments);
  }

  /** tap reports a file that ran out of time, while others ran beside it, outside of any file. */
  #failOutside(failure) {
    this.#root.failed += 1;
    const name = failure.diag?.expired ?? failure.message;
    const file = { ...newNode(name, 0), failures: [failure], failed: 1 };
    this.#printFile(file, null);
  }

  /** @param {Node} file @param {number | null} timeMs */
  #printFile(file, timeMs) {
    const seconds = timeMs === null || timeMs === undefined ? '' : ` (${(timeMs / 1000).toFixed(1)} s)`;
    if (process.env['STILLPOINT_TALLY'] && seconds !== '')
      appendFileSync(
        `${process.env['STILLPOINT_TALLY']}.times`,
        `${(timeMs / 1000).toFixed(1)} ${file.name}\n`,
      );
    this.push(`${file.failed > 0 ? 'FAIL' : 'ok  '} ${file.name}: ${summary(file)}${seconds}\n`);
    // Such as seeds and measured times.
    for (const comment of file.comments) this.push(`       # ${comment}\n`);
    for (const { path, message, diag } of file.failures) {
      this.push(`\n  FAILED ${[...path, message].join(' > ')}\n`);
      if (diag) this.push(`${indented(stringify(diag), 4)}\n`);
    }
  }
}

/** @returns {Node} */
function newNode(name, depth) {
  return { name, depth, children: [], failures: [], comments: [], skipped: 0, failed: 0, passed: 0 };
}

function summary({ passed, failed, skipped }) {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`;
}

function indented(text, width) {
  return text.trimEnd().replaceAll(/^/gm, ' '.repeat(width));
}
