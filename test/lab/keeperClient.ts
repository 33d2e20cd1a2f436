import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Socket } from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { keeperAnswer } from './keeperAnswer.ts';
import { sweepLab } from './sweep.ts';

const keeperFile = path.join(import.meta.dirname, 'keeper.ts');

type KeeperChild = ChildProcessByStdio<Writable, Readable, Readable>;

/** This side of `keeper.ts`. */
export class Keeper {
  /** tini, the subreaper. */
  readonly pid: number;
  readonly holderPid: number;
  readonly #child: KeeperChild;
  readonly #answers: Answers;
  readonly #swept: Promise<void>;

  private constructor(child: KeeperChild, answers: Answers, details: { root: string; holderPid: number }) {
    this.pid = child.pid ?? 0;
    this.holderPid = details.holderPid;
    this.#child = child;
    this.#answers = answers;
    // The keeper has swept unless it, or tini, was killed: then nobody else does.
    this.#swept = answers.ended.then(() => sweepLab(details.root));
  }

  /** Makes the mount namespace of the laboratory at `root`. */
  static async start(root: string): Promise<Keeper> {
    const child = spawnKeeper(root);
    try {
      await once(child, 'spawn');
    } catch (error) {
      throw new Error('tini cannot be started; run: npm run setup', { cause: error });
    }
    const answers = new Answers(child);
    const holderPid = await answers.next();
    return new Keeper(child, answers, { root, holderPid });
  }

  async startLibvirtd(): Promise<void> {
    this.#child.stdin.write('libvirtd\n');
    await this.#answers.next();
  }

  /** Sweeps the laboratory away. */
  async stop(): Promise<void> {
    holdProcess(this.#child, true);
    this.#child.stdin.end();
    await this.#swept;
  }
}

/** The keeper's lines of JSON, one after the other. */
class Answers {
  readonly ended: Promise<unknown>;
  readonly #child: KeeperChild;
  readonly #lines: AsyncIterator<string>;
  #stderr = '';

  constructor(child: KeeperChild) {
    this.#child = child;
    // Closing its input is what tells an orphaned keeper to sweep.
    this.ended = once(child, 'exit').then(() => child.stdin.destroy());
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    child.stderr.on('data', (chunk: Buffer) => {
      this.#stderr += String(chunk);
    });
  }

  /** The next one: the holder's process id. */
  async next(): Promise<number> {
    holdProcess(this.#child, true);
    const line = await this.#lines.next();
    if (line.done === true) throw new Error(`the keeper of the laboratory has ended: ${this.#stderr}`);
    holdProcess(this.#child, false);
    const answer = keeperAnswer.parse(JSON.parse(line.value));
    if ('error' in answer) throw new Error(answer.error);
    return answer.holderPid;
  }
}

/** Whether the keeper keeps this process alive: only while something is awaited from it. */
function holdProcess(child: KeeperChild, hold: boolean): void {
  const streams = [child.stdin, child.stdout, child.stderr].filter((stream) => stream instanceof Socket);
  for (const handle of [child, ...streams]) {
    if (hold) handle.ref();
    else handle.unref();
  }
}

/**
 * In a session of its own: an interrupt from the terminal must not reach it before it has swept. Not by
 * execa, which cannot let a test process end while its child lives.
 */
function spawnKeeper(root: string): KeeperChild {
  return spawn('tini', ['-s', '--', process.execPath, keeperFile, root], {
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
  });
}
