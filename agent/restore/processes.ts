import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrno } from '../../common/errors.ts';

const endMs = 10_000;
const pollMs = 20;

/** Processes whose arguments are meant: that outlives us and every file of ours. */
export async function processesWith(
  isMeant: (args: readonly string[]) => boolean,
): Promise<readonly number[]> {
  const pids: number[] = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const args = ((await commandLine(entry)) ?? '').split('\0');
    if (isMeant(args)) pids.push(Number(entry));
  }
  return pids;
}

/** Asks these processes to end, and ends those that do not; returns when there are none. */
export async function endProcessesWith(isMeant: (args: readonly string[]) => boolean): Promise<void> {
  const deadline = performance.now() + endMs;
  for (const pid of await processesWith(isMeant)) signalProcess(pid, 'SIGTERM');
  for (;;) {
    const left = await processesWith(isMeant);
    if (left.length === 0) return;
    if (performance.now() > deadline) for (const pid of left) signalProcess(pid, 'SIGKILL');
    await sleep(pollMs);
  }
}

/** Signals a process; one that has ended meanwhile is fine. */
export function signalProcess(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if (!isErrno(error, 'ESRCH')) throw error;
  }
}

async function commandLine(pid: string): Promise<string | undefined> {
  try {
    return await readFile(`/proc/${pid}/cmdline`, 'utf8');
  } catch (error) {
    // Processes end while we look at them.
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return undefined;
    throw error;
  }
}
