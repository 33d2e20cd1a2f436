import { flushCompileCache } from 'node:module';

import { Connection } from './connection.ts';
import { dieWithParent, runEventLoop } from './library.ts';
import { errorMessage, isRequest } from './messages.ts';
import type { Reply, Request } from './messages.ts';
import { makeOperations } from './operations.ts';

/**
 * Entry of the child processes that talk to libvirt. One connection, one call at a time, synchronous: the
 * error of a call is kept by libvirt for the thread that made it, and a stuck call can only be ended by
 * SIGKILL, which the parent sends. Started with the connection's URI and the parent's pid as its arguments.
 */

const [uri, parentPid] = process.argv.slice(2);
if (uri === undefined || parentPid === undefined || process.send === undefined)
  throw new Error('this program is started by its parent');

dieWithParent();
// A call is ended by the parent alone: on Ctrl-C, or when a service is stopped, it first aborts what runs.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
// SIGKILL: an exit would wait for ever for the thread of libvirt's event loop.
const die = (): void => void process.kill(process.pid, 'SIGKILL');
process.on('disconnect', die);
// A parent that died before the kernel knew that we want to die with it has left us to another one.
if (!process.connected || process.ppid !== Number(parentPid)) die();

const connection = new Connection(uri);
const operations = makeOperations(connection, {
  event: (event) => send({ kind: 'event', event }),
  closed: () => process.disconnect(),
});
runEventLoop();
process.on('message', (message) => {
  if (!isRequest(message)) throw new Error('not a request');
  send(answer(message));
});
// Only has an effect where the operator turned the compile cache on; then it saves the next child 13 MiB.
flushCompileCache();

function answer({ id, operation, args }: Request): Reply {
  try {
    if (!Object.hasOwn(operations, operation)) throw new Error(`there is no operation ${operation}`);
    const value: unknown = Reflect.apply(operations[operation], undefined, args);
    return { kind: 'result', id, value };
  } catch (error) {
    return { kind: 'error', id, error: errorMessage(error) };
  }
}

function send(reply: Reply): void {
  process.send?.(reply);
}
