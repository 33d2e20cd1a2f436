import type { Writable } from 'node:stream';

let hangingCalls = 0;

/** Notes a call that was given up and may never end, such as one into a network mount whose server is gone. */
export function noteHangingCall(call: Promise<unknown>): void {
  hangingCalls += 1;
  const ended = (): void => {
    hangingCalls -= 1;
  };
  call.then(ended, ended);
}

/**
 * Waits until everything that was said has gone out, or its reader has: a pipe takes 64 KiB at a time, and what waits
 * in this process behind them is lost with it.
 */
export async function outputGone(
  streams: readonly Writable[] = [process.stdout, process.stderr],
): Promise<void> {
  await Promise.all(
    // The end of an empty write comes after that of all others; errors are told to whoever listens for them.
    streams.map((stream) => new Promise<void>((resolve) => stream.write('', () => resolve()))),
  );
}

/**
 * Ends this process with an exit code; what was said and has not gone out (`outputGone`) is lost. Node.js waits at its
 * end for the threads of all calls, also of one that hangs; the kernel does not, when a process becomes another program.
 */
export function endProcess(code: number): never {
  if (hangingCalls > 0) process.execve?.('/bin/sh', ['sh', '-c', `exit ${code}`], process.env);
  process.exit(code);
}
