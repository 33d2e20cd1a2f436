import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** What a promise or a registry of finalizers refers to goes with a later turn of the event loop. */
const collections = 3;

/** Has everything freed that nothing refers to any more. */
export async function collectGarbage(): Promise<void> {
  setFlagsFromString('--expose-gc');
  for (let time = 0; time < collections; time += 1) {
    runInNewContext('gc')();
    await sleep(10);
  }
}
