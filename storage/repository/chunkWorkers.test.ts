import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { promisify } from 'node:util';
import t from 'tap';
import { type ChunkTask, perform, type ResultOf } from './chunkTasks.ts';
import { ChunkWorkers } from './chunkWorkers.ts';
import { dataDomain } from './fixture.ts';
import { giveBack, sharedBuffer } from './ownMemory.ts';
import { hmac } from './seal.ts';

const key = randomBytes(32);

function sharedCopy(content: Buffer): Buffer {
  const copy = sharedBuffer(content.length);
  content.copy(copy);
  return copy;
}

/** A blob of 100 KiB, half of which can be compressed, and what it takes to open it. */
function someBlob() {
  const content = sharedCopy(Buffer.concat([randomBytes(50 * 1024), Buffer.alloc(50 * 1024, 7)]));
  const id = hmac(key, content);
  const order = { blobSecret: key, slot: 3, id, domain: dataDomain };
  return { content, id, order };
}

void t.test('threads give what is done here, however many tasks come at once', async (t) => {
  const workers = new ChunkWorkers({ threads: 2 });
  const blobs = Array.from({ length: 12 }, someBlob);
  const tasks = blobs.flatMap(({ content, order }): readonly ChunkTask[] => [
    { kind: 'identify', idKey: key, content },
    { kind: 'seal', content, order },
    { kind: 'digest', parts: [content, content.subarray(5)] },
  ]);
  const there = await Promise.all(tasks.map(async (task) => workers.run(task)));
  t.same(
    there.map(digestOf),
    tasks.map((task) => digestOf(perform(task))),
  );
  t.ok(workers.running >= 1 && workers.running <= 2);
  await workers.rest();
  t.equal(workers.running, 0, 'and end when they are not needed');
  const content = sharedBuffer(10);
  t.equal((await workers.run({ kind: 'digest', parts: [content] })).length, 32, 'and start again');
});

void t.test('what a task throws is told to who asked, and the thread goes on', async (t) => {
  const workers = new ChunkWorkers({ threads: 1 });
  const short = {
    ...someBlob().order,
    blobSecret: Buffer.alloc(0),
    domain: { ...dataDomain, chunkSizeBytes: -1 },
  };
  const wrong = { kind: 'seal', content: Buffer.alloc(100), order: short } as const;
  await t.rejects(workers.run(wrong), { message: /out of range/ });
  await t.resolves(workers.run({ kind: 'digest', parts: [] }));
  t.equal(workers.running, 1);
});

void t.test('a thread that dies fails what it had to do and nothing else, and is replaced', async (t) => {
  const file = join(
    t.testdir({
      'worker.mjs': `import { parentPort } from 'node:worker_threads';
parentPort.on('message', ({ parts }) => {
  if (parts.length === 0) process.exit(3);
  parentPort.postMessage({ result: parts.length });
});`,
    }),
    'worker.mjs',
  );
  const ended = 'a thread that worked on chunks has ended';
  const workers = new ChunkWorkers({ threads: 1, file });
  const task = (count: number) =>
    ({ kind: 'digest', parts: Array.from({ length: count }, () => key) }) as const;
  const results = await Promise.allSettled([1, 0, 2, 3].map(async (count) => workers.run(task(count))));
  t.same(
    results.map((result) => (result.status === 'fulfilled' ? result.value : String(result.reason))),
    [1, `Error: ${ended}`, `Error: ${ended}`, 3],
    'also what it had not begun',
  );
  const missing = new ChunkWorkers({ threads: 2, file: join(t.testdir(), 'none.mjs') });
  await t.rejects(
    missing.run(task(1)),
    { message: /has ended/ },
    'one that cannot be started is no other case',
  );
});

void t.test('a piece of work that is small needs no thread', async (t) => {
  const workers = new ChunkWorkers({ threads: 2, inlineBytes: 250 * 1024 });
  const work = workers.begin();
  const { content } = someBlob();
  const identify = { kind: 'identify', idKey: key, content } as const;
  for (let round = 0; round < 3; round++) await work.run(identify, content.length);
  t.equal(workers.running, 0);
  await work.run(identify, content.length);
  t.equal(workers.running, 1, 'what is more does');
  await work.run({ kind: 'identify', idKey: key, content: Buffer.from('few') }, 3);
  await workers.begin().run(identify, content.length);
  t.equal(workers.running, 1);
});

void t.test('threads end when there is nothing to do for a while', async (t) => {
  const workers = new ChunkWorkers({ threads: 2, idleMs: 1 });
  await workers.run({ kind: 'digest', parts: [] });
  while (workers.running > 0) await setImmediate();
  t.equal((await workers.run({ kind: 'digest', parts: [] })).length, 32);
});

void t.test('threads keep no process alive, and one that waits for them lives', async (t) => {
  const program = `
import { ChunkWorkers } from ${JSON.stringify(join(import.meta.dirname, 'chunkWorkers.ts'))};
const done = await new ChunkWorkers({ idleMs: 600_000 }).run({ kind: 'digest', parts: [new Uint8Array(3)] });
console.log(done.length);`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], {
    timeout: 60_000,
  });
  t.equal(stdout.trim(), '32');
});

void t.test('memory is given back only by who has it alone', (t) => {
  const own = Buffer.allocUnsafeSlow(128 * 1024);
  giveBack(own);
  t.equal(own.length, 0);
  const pooled = Buffer.from('from the pool');
  giveBack(pooled);
  const part = Buffer.alloc(100 * 1024, 1).subarray(10);
  giveBack(part);
  const shared = sharedBuffer(64 * 1024);
  giveBack(shared);
  t.same([pooled.toString(), part.length, shared.length], ['from the pool', 100 * 1024 - 10, 64 * 1024]);
  t.end();
});

/** What a result says, short enough to be compared. */
function digestOf(result: ResultOf<ChunkTask>): string {
  const parts =
    typeof result === 'object' && 'body' in result
      ? [result.body, result.tag, String(result.storedBytes)]
      : [result];
  const digest = createHash('sha256');
  for (const part of parts) digest.update(part instanceof Uint8Array ? part : String(part));
  return digest.digest('hex');
}
