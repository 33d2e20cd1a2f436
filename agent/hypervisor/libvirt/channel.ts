import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';

import { HypervisorError } from '../errors.ts';
import type { HypervisorEvent } from '../hypervisor.ts';
import { errorFrom, isReply } from './messages.ts';
import type { OperationName, Request } from './messages.ts';
import type { Operations } from './operations.ts';

export type OperationArguments<Name extends OperationName> = Parameters<Operations[Name]>;
export type OperationResult<Name extends OperationName> = ReturnType<Operations[Name]>;

interface Pending {
  readonly id: number;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: HypervisorError) => void;
}

/** Beside this file, in the form that this file has: `.ts` in a checkout, `.js` when built. */
const workerFile = fileURLToPath(new URL(`worker${extname(import.meta.url)}`, import.meta.url));

/**
 * The parent's side of one child process with one connection to libvirt. One request at a time. It never
 * keeps the parent's event loop alive by itself: the deadline of a request does, while there is one.
 */
export class Channel {
  readonly #child: ChildProcess;
  readonly #onEvent: (event: HypervisorEvent) => void;
  readonly #end = Promise.withResolvers<void>();
  #alive = true;
  #lastId = 0;
  #pending: Pending | undefined;

  constructor(uri: string, onEvent: (event: HypervisorEvent) => void = () => undefined) {
    this.#onEvent = onEvent;
    const { NODE_OPTIONS: _ofTheParent, ...env } = process.env;
    this.#child = fork(workerFile, [uri, String(process.pid)], {
      // It waits for libvirt and passes on what that says: to be small is all that is asked of it.
      execArgv: ['--optimize-for-size'],
      env,
      // In a session of its own: a Ctrl-C on the terminal is for us, who bring the machine in order with its help.
      detached: true,
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.#child.on('message', (message) => this.#receive(message));
    this.#child.on('error', (error) => this.#ended('could not be started or reached', error));
    this.#child.on('exit', (code, signal) => this.#ended(`ended (${signal ?? `exit code ${code}`})`));
    this.#child.on('disconnect', () => this.kill());
    this.#child.unref();
    this.#child.channel?.unref();
  }

  /** False as soon as the child has ended or was told to. */
  get alive(): boolean {
    return this.#alive;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Resolves when the child process is gone. */
  get end(): Promise<void> {
    return this.#end.promise;
  }

  /**
   * Has the child perform one operation. Past the deadline the child is killed: what it asked libvirt to do
   * may go on there.
   * @throws HypervisorError
   */
  async request<Name extends OperationName>(
    operation: Name,
    args: OperationArguments<Name>,
    deadlineMs: number,
  ): Promise<OperationResult<Name>> {
    if (!this.#alive) throw lost(operation, 'has ended');
    if (this.#pending !== undefined) throw new Error('a channel takes one request at a time');
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const id = (this.#lastId += 1);
    this.#pending = { id, resolve, reject };
    const timer = setTimeout(() => {
      reject(deadlineExceeded(operation));
      this.kill();
    }, deadlineMs);
    this.#child.send({ id, operation, args } satisfies Request, (error) => {
      if (error !== null) this.#ended('could not be reached', error);
    });
    try {
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the answer to this request, from our own code
      return (await promise) as OperationResult<Name>;
    } finally {
      clearTimeout(timer);
      this.#pending = undefined;
    }
  }

  /** Ends the child at once, whatever it does. */
  kill(): void {
    this.#alive = false;
    // Whoever waits for the end must not find an empty event loop instead; it takes milliseconds.
    this.#child.ref();
    this.#child.kill('SIGKILL');
  }

  #receive(message: unknown): void {
    if (!isReply(message)) throw new Error('not a message of a libvirt child');
    if (message.kind === 'event') return this.#onEvent(message.event);
    // The answer to a request whose deadline has just passed has nobody waiting for it.
    if (message.id !== this.#pending?.id) return;
    if (message.kind === 'result') this.#pending.resolve(message.value);
    else this.#pending.reject(errorFrom(message.error));
  }

  #ended(how: string, cause?: unknown): void {
    this.#alive = false;
    this.#pending?.reject(lost('the call', how, cause));
    this.#end.resolve();
  }
}

function lost(what: string, how: string, cause?: unknown): HypervisorError {
  return new HypervisorError('HYPERVISOR_UNREACHABLE', `${what}: the libvirt child ${how}`, {
    cause,
    hint: 'look at what libvirt is doing now before trying again: virsh list --all',
    retryable: true,
  });
}

/** The error for a call that libvirt did not answer in time. */
export function deadlineExceeded(operation: OperationName): HypervisorError {
  return new HypervisorError('DEADLINE_EXCEEDED', `libvirt did not answer ${operation} before its deadline`, {
    hint: 'check that libvirtd answers: virsh version; what was started may still go on there',
    retryable: true,
  });
}
