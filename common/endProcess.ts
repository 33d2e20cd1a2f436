import { flushCompileCache } from 'node:module';
import type { Writable } from 'node:stream';

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
 * Ends this process with an exit code; what was said and has not gone out (`outputGone`) is lost. Who listens for `exit`
 * is told.
 *
 * By becoming another program, for which the kernel ends all threads. Node.js itself waits for them: for one with a call
 * that hangs, as into a network mount whose server is gone, and for one of V8 that compiles and waits in turn for the
 * garbage collector of a main thread that has ended (https://github.com/nodejs/node/issues/54918, once in some thousands
 * of short commands).
 */
export function endProcess(code: number): never {
  process.exitCode = code;
  process.emit('exit', code);
  flushCompileCache();
  process.execve?.('/bin/sh', ['sh', '-c', `exit ${code}`], {});
  process.exit(code);
}
