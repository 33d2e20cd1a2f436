import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import t from 'tap';
import { ChunkedFile, pieceBytes } from './chunkedFile.ts';
import { Run } from '../run.ts';

void t.test('a run that is stopped while data go to the disk leaves no rejection behind', async (t) => {
  const unhandled: unknown[] = [];
  const hear = (reason: unknown): void => void unhandled.push(reason);
  process.on('unhandledRejection', hear);
  t.teardown(() => process.off('unhandledRejection', hear));
  const file = await open(join(t.testdir({}), 'file'), 'wx');
  const synced = Promise.withResolvers<void>();
  file.datasync = () => synced.promise;
  const run = new Run(undefined);
  const image = new ChunkedFile(file, 64 * pieceBytes, run);
  const piece = Buffer.alloc(pieceBytes, 1);
  // With the last of them a datasync begins.
  for (let index = 0; index < 64; index += 1) await image.write(index, piece);
  const reason = new Error('enough'); // as when the job is cancelled
  run.fail(reason);
  synced.resolve();
  await image.close();
  await nextTurn();
  await nextTurn();
  t.same(unhandled, []);
});
