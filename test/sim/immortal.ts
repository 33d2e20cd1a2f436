import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { eventually } from '../lab/eventually.ts';

/** A program that is started again after each kill. */
export class Immortal {
  readonly #command: readonly string[];
  #child: ChildProcess | undefined;
  said = '';
  kills = 0;

  constructor(command: readonly string[]) {
    this.#command = command;
  }

  start(): void {
    const child = spawn(process.execPath, this.#command, { stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (data: Buffer) => (this.said += String(data)));
    this.#child = child;
  }

  get exitCode(): number | null | undefined {
    return this.#child?.exitCode;
  }

  /** Of a receiver that was told to take any. */
  async listeningPort(): Promise<number> {
    const said = () => /listening on 127\.0\.0\.1:(\d+)/.exec(this.said)?.[1];
    return Number(await eventually(said, { timeoutMs: 30_000 }));
  }

  /** @returns whether it was still running */
  async kill(signal: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): Promise<boolean> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return false;
    const closed = once(child, 'close');
    child.kill(signal);
    await closed;
    this.kills += 1;
    return true;
  }
}
