import { setTimeout as sleep } from 'node:timers/promises';
import type { LabAgent } from '../test/lab/lab.ts';
import { treePssBytes } from './processTree.ts';

const sampleMs = 100;

/** The most memory that a command of ours has with its children, looked at ten times a second, in bytes. */
export async function mostMemory(
  agent: LabAgent,
  args: readonly string[],
  options: { readonly timeoutMs?: number } = {},
): Promise<number> {
  const run = agent.background([...args, '--quiet'], options);
  const ended = new AbortController();
  const watch = async (): Promise<number> => {
    let mostBytes = 0;
    while (!ended.signal.aborted) {
      mostBytes = Math.max(mostBytes, await treePssBytes(run.pid));
      await sleep(sampleMs);
    }
    return mostBytes;
  };
  const watching = watch();
  const { exitCode, stderr } = await run.done;
  ended.abort();
  if (exitCode !== 0) throw new Error(`${args[0]} failed: ${stderr}`);
  return watching;
}
