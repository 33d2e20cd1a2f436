import { parentPort } from 'node:worker_threads';
import { type ChunkTask, givenBack, perform } from './chunkTasks.ts';

/*
 * A thread that does tasks for chunkWorkers.ts, one after the other. It knows no store and keeps no key.
 */

/** What came of a task. */
export type Reply = { readonly result: unknown } | { readonly error: unknown };

parentPort?.on('message', (task: ChunkTask) => {
  try {
    const result = perform(task);
    answer({ result }, givenBack(result));
  } catch (error) {
    answer({ error }, []);
  }
});

function answer(reply: Reply, given: readonly ArrayBuffer[]): void {
  parentPort?.postMessage(reply, [...given]);
}
