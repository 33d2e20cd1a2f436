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
 * Ends this process with an exit code. Node.js waits at its end for the threads of all calls, also of one that
 * hangs; the kernel does not, when a process becomes another program.
 */
export function endProcess(code: number): never {
  if (hangingCalls > 0) process.execve?.('/bin/sh', ['sh', '-c', `exit ${code}`], process.env);
  process.exit(code);
}
