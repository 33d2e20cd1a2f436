import t from 'tap';
import { randomFrom } from './fixture.ts';
import { assemble, RawClient, rawClientFlags, rawGo, rawOption } from './rawClient.ts';
import { ReadCache } from './readCache.ts';
import { contentOf, Gate, ScriptedSource } from './scriptedSource.ts';
import { clientsLeft, connectTo, dataOf, serve } from './serverFixture.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const allocation = 'base:allocation';
const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);
const random = randomFrom(seed);

const bytesOf = (lengthBytes: number): ScriptedSource => dataOf(random, lengthBytes);

void t.test('requests beyond their number, and bytes beyond theirs, wait for those before', async (t) => {
  const blockBytes = 4 * KiB;
  for (const limits of [
    { requests: 3, readAheadBytes: 0 },
    { heldBytes: 3 * blockBytes, readAheadBytes: 0 },
  ]) {
    const source = bytesOf(MiB);
    const gate = new Gate();
    source.onRead = () => gate.pass();
    const cache = new ReadCache({ blockBytes });
    const { socketPath } = await serve(t, { vda: source, vdb: bytesOf(MiB) }, { cache, limits });
    using client = await RawClient.open(socketPath, 'vda', { structured: false });
    const count = 40;
    for (let index = 0; index < count; index += 1)
      client.send({ command: 0, cookie: BigInt(index), offset: index * blockBytes, length: 10 });
    await gate.reached(3);
    await using other = await connectTo(socketPath, [], 'vdb');
    for (let round = 0; round < 10; round += 1) await other.read(round * 10 * KiB, 10);
    t.equal(gate.waiting, 3, 'three and no more');
    gate.open();
    const seen = new Set<bigint>();
    for (let index = 0; index < count; index += 1) {
      const { cookie, data } = await client.simple(10);
      const start = Number(cookie) * blockBytes;
      if (data.equals(source.content.subarray(start, start + 10))) seen.add(cookie);
    }
    t.equal(seen.size, count);
  }
});

void t.test(
  'what a read has taken it gives back, from the cache, from the source, and when it fails',
  async (t) => {
    const blockBytes = 64 * KiB;
    const source = bytesOf(4 * MiB);
    let isBroken = false;
    source.onRead = () => {
      if (isBroken) throw new Error('gone');
    };
    const cache = new ReadCache({ blockBytes, maxBytes: 2 * blockBytes });
    const limits = { heldBytes: 2 * blockBytes, readAheadBytes: 0 };
    const { socketPath } = await serve(t, { vda: source }, { cache, limits });
    await using client = await connectTo(socketPath);
    for (let round = 0; round < 10; round += 1)
      t.same(await client.read(round, 10), source.content.subarray(round, round + 10));
    t.equal(source.reads.length, 1);
    isBroken = true;
    for (const length of [10, 2 * MiB])
      for (let round = 0; round < 10; round += 1)
        await t.rejects(client.read(MiB, length), { code: 'NBD_SERVER_ERROR', errno: 5 });
    isBroken = false;
    t.ok((await client.read(0, 4 * MiB)).equals(source.content));
  },
);

void t.test('a client that takes no answers is asked for no more options', async (t) => {
  const name = 'x'.repeat(4096);
  const source = bytesOf(MiB);
  const { socketPath } = await serve(t, { vda: source, [name]: source });
  using deaf = await RawClient.connect(socketPath);
  deaf.socket.pause();
  const lists = Array.from({ length: 150 }, () => rawOption(3));
  const long = Array.from({ length: 100 }, () => rawOption(99, Buffer.alloc(16 * KiB)));
  deaf.write(rawClientFlags, ...lists, ...long);
  await using other = await connectTo(socketPath);
  for (let round = 0; round < 200; round += 1) await other.read(0, 10);
  t.ok(deaf.socket.writableLength > 0, 'the long ones stay where they are');
  deaf.socket.resume();
  await deaf.read(18 + 150 * (20 + 4 + 3 + 20 + 4 + 4096 + 20));
  for (let left = long.length; left > 0; left -= 1)
    t.equal((await deaf.read((await deaf.read(20)).readUInt32BE(16))).toString(), 'the option is not known');
  t.equal((await deaf.ask(rawGo('vda'))).length, 3);
});

void t.test('after his farewell nobody is listened to', async (t) => {
  const source = bytesOf(MiB);
  const gate = new Gate();
  source.onRead = () => gate.pass();
  const { server, socketPath } = await serve(t, { vda: source, vdb: bytesOf(MiB) });
  using client = await RawClient.open(socketPath, 'vda');
  client.send({ command: 0, cookie: 1n, length: 10 }, { command: 2, cookie: 2n });
  await gate.reached(1);
  client.write(Buffer.alloc(4 * MiB));
  await using other = await connectTo(socketPath, [], 'vdb');
  for (let round = 0; round < 200; round += 1) await other.read(0, 10);
  t.ok(client.socket.writableLength > 0);
  gate.open();
  await client.closed;
  await clientsLeft(server, 1);
});

void t.test(
  'a client that takes no answers makes the server hold no more than it may, and holds nobody up',
  async (t) => {
    const source = bytesOf(32 * MiB);
    const cache = new ReadCache({ blockBytes: 64 * KiB, maxBytes: 64 * KiB });
    const { socketPath } = await serve(
      t,
      { vda: source },
      { cache, limits: { heldBytes: 2 * MiB, readAheadBytes: 0 } },
    );
    using greedy = await RawClient.open(socketPath, 'vda');
    greedy.socket.pause();
    for (let index = 0; index < 16; index += 1)
      greedy.send({ command: 0, cookie: BigInt(index), offset: index * 2 * MiB, length: 2 * MiB });
    await using other = await connectTo(socketPath);
    for (let round = 0; round < 20; round += 1) {
      const offset = round * MiB + 5;
      t.same(await other.read(offset, 100), source.content.subarray(offset, offset + 100));
    }
    const readBytes = (source.reads.length - 20) * 64 * KiB;
    t.ok(readBytes <= 4 * MiB, `${readBytes} bytes were read for it`); // its window, and what the socket takes
    greedy.socket.resume();
    const replies = await greedy.structured(16);
    for (const [cookie, reply] of replies) {
      const offset = Number(cookie) * 2 * MiB;
      if (!assemble(reply, offset, 2 * MiB)?.equals(source.content.subarray(offset, offset + 2 * MiB)))
        t.fail(`the read at ${offset}`);
    }
  },
);

void t.test(
  'a block is read once, for all connections, and again when the cache has let it go',
  async (t) => {
    const blockBytes = 64 * KiB;
    const [source, second] = [bytesOf(MiB), bytesOf(MiB)];
    const cache = new ReadCache({ blockBytes, maxBytes: 4 * blockBytes });
    const { socketPath } = await serve(
      t,
      { vda: source, vdb: second },
      { cache, limits: { readAheadBytes: 0 } },
    );
    const gate = new Gate();
    source.onRead = () => gate.pass();
    await using first = await connectTo(socketPath);
    await using other = await connectTo(socketPath);
    const reads = [first.read(0, 10), other.read(100, 10), first.read(50, 10)];
    await gate.reached(1);
    gate.open();
    await Promise.all(reads);
    await other.read(20, 10);
    t.same(source.reads, [0]);
    await using third = await connectTo(socketPath, [], 'vdb');
    t.same(await third.read(0, 10), second.content.subarray(0, 10), 'another export has blocks of its own');
    for (const block of [1, 2]) await first.read(block * blockBytes, 10);
    await first.read(0, 10);
    t.same(source.reads, [0, blockBytes, 2 * blockBytes]);
    await first.read(3 * blockBytes, 10); // vdb's block was not asked for the longest
    await first.read(0, 10);
    t.equal(source.reads.length, 4);
    await third.read(0, 10);
    t.same(second.reads, [0, 0]);
  },
);

void t.test('who reads in order is read ahead of, over holes; who does not is not', async (t) => {
  const blockBytes = 64 * KiB;
  const { content, extents } = contentOf(random, [
    { lengthBytes: 8 * blockBytes, zero: false },
    { lengthBytes: 16 * blockBytes, zero: true },
    { lengthBytes: 40 * blockBytes, zero: false },
  ]);
  const limits = { readAheadBytes: 4 * blockBytes };
  const source = new ScriptedSource(content, extents);
  const { socketPath } = await serve(t, { vda: source }, { cache: new ReadCache({ blockBytes }), limits });
  await using client = await connectTo(socketPath, [allocation]);
  await client.blockStatus(allocation, 0, 1);
  for (let block = 0; block < 8; block += 1)
    for (const half of [0, blockBytes / 2]) await client.read(block * blockBytes + half, blockBytes / 2);
  const read = source.reads.map((at) => at / blockBytes);
  t.same(
    read.toSorted((a, b) => a - b),
    [0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27],
    'four blocks ahead, each once',
  );
  await client.read(24 * blockBytes, 10);
  t.ok(source.reads.includes(28 * blockBytes), 'and on behind the hole');
  const calm = new ScriptedSource(content, extents);
  const { socketPath: path } = await serve(
    t,
    { vda: calm },
    { cache: new ReadCache({ blockBytes }), limits },
  );
  await using jumping = await connectTo(path);
  const blocks = [0, 30, 11, 60, 21, 45];
  for (const block of blocks) await jumping.read(block * blockBytes, 10);
  t.same(
    calm.reads,
    blocks.map((block) => block * blockBytes),
  );
});

void t.test('what fails while it is read ahead is read again when it is wanted', async (t) => {
  const blockBytes = 64 * KiB;
  const source = bytesOf(32 * blockBytes);
  let failures = 0;
  source.onRead = (at) => {
    if (at !== 3 * blockBytes || failures > 0) return;
    failures += 1;
    throw new Error('once');
  };
  const limits = { readAheadBytes: 2 * blockBytes };
  const { socketPath, errors } = await serve(
    t,
    { vda: source },
    { cache: new ReadCache({ blockBytes }), limits },
  );
  await using client = await connectTo(socketPath);
  for (let block = 0; block < 5; block += 1)
    t.same(
      await client.read(block * blockBytes, 10),
      source.content.subarray(block * blockBytes, block * blockBytes + 10),
    );
  t.equal(failures, 1);
  t.same(errors, []);
});
