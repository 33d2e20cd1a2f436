import t from 'tap';
import { randomFrom, readFrom } from './fixture.ts';
import { assemble, flagDontFragment, flagRequestOne, RawClient } from './rawClient.ts';
import { ReadCache } from './readCache.ts';
import { contentOf, Gate, ScriptedSource } from './scriptedSource.ts';
import { clientsLeft, connectTo, dataOf, serve } from './serverFixture.ts';
import { NbdVolume } from './volume.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const answerMs = 20_000;
const allocation = 'base:allocation';
const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);
const random = randomFrom(seed);
const below = (limit: number): number => Math.floor(random() * limit);

const bytesOf = (lengthBytes: number): ScriptedSource => dataOf(random, lengthBytes);

/** 6 MiB and some bytes, with holes of all sizes. */
function mixed(): ScriptedSource {
  const lengths: { lengthBytes: number; zero: boolean }[] = [];
  for (const most of [64 * KiB, 300 * KiB, MiB, 3000, 512, 2 * MiB, 100 * KiB, MiB, 70 * KiB, 1])
    lengths.push({ lengthBytes: 1 + below(most), zero: lengths.length % 2 === 1 });
  lengths.push({ lengthBytes: 2 * MiB + 777, zero: false });
  const { content, extents } = contentOf(random, lengths);
  return new ScriptedSource(content, extents);
}

void t.test('every byte is that of the source, whatever is kept, held and asked for', async (t) => {
  for (const [blockBytes, maxBytes, heldBytes] of [
    [4 * KiB, 4 * KiB, 1],
    [64 * KiB, 512 * KiB, 256 * KiB],
    [256 * KiB, 64 * MiB, 8 * MiB],
    [2 * MiB, 4 * MiB, 2 * MiB],
  ] as const) {
    const sources = { vda: mixed(), 'second disk': mixed() };
    const cache = new ReadCache({ blockBytes, maxBytes });
    const { socketPath, errors } = await serve(t, sources, { cache, limits: { heldBytes } });
    for (const contexts of [[], [allocation]])
      await Promise.all(
        Object.entries(sources).map(async ([name, source]) => {
          await using client = await connectTo(socketPath, contexts, name);
          t.equal(client.sizeBytes, source.content.length);
          const reads = Array.from({ length: 60 }, async () => {
            const offset = below(client.sizeBytes);
            const length = Math.min(
              below(10) === 0 ? below(5 * MiB) : below(40 * KiB),
              client.sizeBytes - offset,
            );
            const bytes = await client.read(offset, length);
            if (!bytes.equals(source.content.subarray(offset, offset + length)))
              t.fail(`${length} bytes at ${offset}`);
          });
          await Promise.all(reads);
          t.ok((await client.read(0, client.sizeBytes)).equals(source.content), `all of ${name}`);
        }),
      );
    t.ok(cache.heldBytes <= maxBytes, 'the cache keeps to its bound');
    t.same(errors, []);
  }
});

void t.test('an export is what a backup can read: size, extents, several connections', async (t) => {
  const source = mixed();
  const { socketPath } = await serve(t, { vda: source });
  await using volume = await NbdVolume.open({ socketPath, exportName: 'vda', answerMs, connections: 3 });
  t.equal(volume.connections, 3);
  t.same(await volume.extents(), await source.extents());
  t.equal(source.mapsRead, 2, 'one map for all connections, and that of this test');
  t.same(await readFrom(volume, 5, 100), source.content.subarray(5, 105));
  await using client = await connectTo(socketPath, [allocation]);
  t.ok(client.readOnly);
  for (let round = 0; round < 100; round += 1) {
    const offset = below(client.sizeBytes);
    const length = 1 + below(client.sizeBytes - offset);
    const zero = (position: number): boolean => (source.content[position] ?? 0) === 0;
    for (const status of await client.blockStatus(allocation, offset, length)) {
      const wanted = zero(status.offsetBytes) ? 3 : 0;
      if (status.flags !== wanted) t.fail(`${status.flags} at ${status.offsetBytes}`);
    }
  }
});

void t.test('a volume without bytes, and one of a single byte', async (t) => {
  const { socketPath } = await serve(t, {
    none: new ScriptedSource(Buffer.alloc(0), []),
    one: new ScriptedSource(Buffer.from('x')),
  });
  await using none = await connectTo(socketPath, [allocation], 'none');
  t.equal(none.sizeBytes, 0);
  t.same(await none.blockStatus(allocation, 0, 0), []);
  using raw = await RawClient.open(socketPath, 'none', { allocation: true });
  raw.send({ command: 0, cookie: 1n }, { command: 7, cookie: 2n, length: 1 });
  const replies = await raw.structured(2);
  t.match(replies.get(1n), { errno: 0, data: [] });
  t.match(replies.get(2n), { errno: 22 });
  await using one = await connectTo(socketPath, [allocation], 'one');
  t.same(await one.read(0, 1), Buffer.from('x'));
  t.same(await one.blockStatus(allocation, 0, 1), [{ offsetBytes: 0, lengthBytes: 1, flags: 0 }]);
});

void t.test('what is known to be zero goes as a hole, and is not read', async (t) => {
  const { content, extents } = contentOf(random, [
    { lengthBytes: 100 * KiB, zero: false },
    { lengthBytes: 500 * KiB, zero: true },
    { lengthBytes: 10 * KiB, zero: false },
    { lengthBytes: 4 * KiB, zero: true },
    { lengthBytes: 3 * MiB, zero: false },
  ]);
  const source = new ScriptedSource(content, extents);
  const { socketPath } = await serve(t, { vda: source });
  using client = await RawClient.open(socketPath, 'vda', { allocation: true });
  client.send({ command: 7, cookie: 1n, length: content.length });
  t.same((await client.structured(1)).get(1n)?.descriptors, [
    [100 * KiB, 0],
    [500 * KiB, 3],
    [10 * KiB, 0],
    [4 * KiB, 3],
    [3 * MiB, 0],
  ]);
  client.send({ command: 7, flags: flagRequestOne, cookie: 1n, offset: 90 * KiB, length: MiB });
  t.same((await client.structured(1)).get(1n)?.descriptors, [[10 * KiB, 0]], 'one that is asked for');
  const read = async (offset: number, length: number, flags = 0): Promise<unknown> => {
    client.send({ command: 0, flags, cookie: 2n, offset, length });
    const reply = (await client.structured(1)).get(2n);
    t.ok(reply && assemble(reply, offset, length)?.equals(content.subarray(offset, offset + length)));
    return reply?.chunks.map(({ type, length: bytes }) => [type, bytes]);
  };
  t.same(await read(200 * KiB, 4 * KiB), [[2, 4 * KiB]], 'a hole however small, if it is all');
  t.same(await read(610 * KiB, 4 * KiB), [[2, 4 * KiB]]);
  t.same(source.reads, []);
  t.same(
    await read(90 * KiB, 515 * KiB),
    [
      [1, 10 * KiB],
      [2, 500 * KiB],
      [1, 5 * KiB],
      [0, 0],
    ].toSorted(([a = 0], [b = 0]) => Number(a === 0) - Number(b === 0) || Number(a === 1) - Number(b === 1)),
  );
  t.same(source.reads, [0, 512 * KiB], 'blocks with data only');
  t.same(await read(600 * KiB, 100 * KiB), [[1, 100 * KiB]], 'a small one among data goes with them');
  t.same(
    await read(90 * KiB, 515 * KiB, flagDontFragment),
    [[1, 515 * KiB]],
    'one chunk if that is asked for',
  );
  t.same(
    source.reads.filter((at) => at === 256 * KiB),
    [],
    'zeros are not read for that, either',
  );
  using simple = await RawClient.open(socketPath, 'vda', { structured: false });
  simple.send({ command: 0, cookie: 3n, offset: 90 * KiB, length: 515 * KiB });
  const { data, cookie, errno } = await simple.simple(515 * KiB);
  t.same([cookie, errno], [3n, 0]);
  t.ok(data.equals(content.subarray(90 * KiB, 605 * KiB)));
});

void t.test('a hole is none before the map is there, and a read does not wait for it', async (t) => {
  const { content, extents } = contentOf(random, [{ lengthBytes: MiB, zero: true }]);
  const source = new ScriptedSource(content, extents);
  const gate = new Gate();
  source.onMap = () => gate.pass();
  const { socketPath } = await serve(t, { vda: source });
  await using first = await connectTo(socketPath);
  t.same(await first.read(MiB - 1, 1), Buffer.alloc(1));
  t.equal(source.mapsRead, 0, 'the map of a large volume is a lot to read for one who does not ask');
  await using client = await connectTo(socketPath, [allocation]);
  await using other = await connectTo(socketPath);
  t.same(await other.read(0, 1), Buffer.alloc(1));
  t.equal(source.mapsRead, 1, 'who may ask for it will ask for it');
  const status = client.blockStatus(allocation, 0, MiB);
  t.same(await client.read(0, 4096), Buffer.alloc(4096));
  t.same(source.reads, [768 * KiB, 0]);
  gate.open();
  t.same(await status, [{ offsetBytes: 0, lengthBytes: MiB, flags: 3 }]);
  t.equal(source.mapsRead, 1);
});

void t.test('a map with a gap is no map', async (t) => {
  const extents = [
    { offsetBytes: 0, lengthBytes: 4096, zero: true },
    { offsetBytes: 8192, lengthBytes: 4096, zero: true },
  ];
  const { socketPath, errors } = await serve(t, {
    vda: new ScriptedSource(Buffer.alloc(12_288, 1), extents),
  });
  await using client = await connectTo(socketPath, [allocation]);
  await t.rejects(client.blockStatus(allocation, 0, 12_288), { code: 'NBD_SERVER_ERROR', errno: 5 });
  t.match(errors, [{ code: 'NBD_SOURCE_FAILED', message: /gap at 4096/ }]);
  t.same(await client.read(0, 10), Buffer.alloc(10, 1));
});

void t.test(
  'a source that fails fails what asked for it, is reported once, and is asked again',
  async (t) => {
    const source = bytesOf(4 * MiB);
    const broken = new Set([256 * KiB]);
    const gate = new Gate();
    source.onRead = async (at) => {
      if (!broken.has(at)) return;
      await gate.pass();
      throw new Error('the disk is gone');
    };
    const { socketPath, errors } = await serve(t, { vda: source }, { limits: { readAheadBytes: 0 } });
    await using client = await connectTo(socketPath);
    await using other = await connectTo(socketPath);
    const refused = { code: 'NBD_SERVER_ERROR', errno: 5 };
    const reads = [
      client.read(256 * KiB, 10),
      client.read(300 * KiB, 10),
      other.read(256 * KiB, 10),
      client.read(250 * KiB, 10 * KiB),
      client.read(0, 4 * MiB),
    ].map((read) => t.rejects(read, refused));
    const good = client.read(600 * KiB, 100);
    t.same(await good, source.content.subarray(600 * KiB, 600 * KiB + 100), 'others do not wait');
    gate.open();
    await Promise.all(reads);
    t.equal(source.reads.filter((at) => at === 256 * KiB).length, 1, 'one read for all of them');
    t.match(errors, [
      { code: 'NBD_SOURCE_FAILED', message: /"vda": 262144 bytes at 262144 .*the disk is gone/ },
    ]);
    using simple = await RawClient.open(socketPath, 'vda', { structured: false });
    simple.send(
      { command: 0, cookie: 5n, offset: 256 * KiB, length: 10 },
      { command: 0, cookie: 6n, length: 10 },
    );
    const replies = [await simple.simple(10), await simple.simple(10)];
    t.same(replies.find(({ cookie }) => cookie === 5n)?.errno, 5);
    t.same(replies.find(({ cookie }) => cookie === 6n)?.data, source.content.subarray(0, 10));
    t.equal(errors.length, 2, 'each failed read is reported');
    await t.rejects(other.read(0, 3 * MiB), refused);
    t.equal(errors.length, 3, 'also that of a large one');
    broken.clear();
    t.ok((await client.read(0, 4 * MiB)).equals(source.content), 'a failure is not kept');
    source.onMap = () => {
      throw new Error('no map');
    };
    await using third = await connectTo(socketPath, [allocation]);
    await t.rejects(third.blockStatus(allocation, 0, 1), refused);
    source.onMap = () => {};
    t.equal((await third.blockStatus(allocation, 0, 4 * MiB)).length, 1, 'nor is that of a map');
  },
);

void t.test('what a read-only export refuses is refused alone, and its bytes are thrown away', async (t) => {
  const source = bytesOf(MiB);
  const { socketPath, errors } = await serve(t, { vda: source });
  const last = { command: 0, cookie: 99n, offset: 7, length: 9 };
  const cases: [{ command: number; flags?: number; offset?: number | bigint; length?: number }, number][] = [
    [{ command: 1, length: 300_001 }, 1],
    [{ command: 1, offset: 2 * MiB, length: 0 }, 1],
    [{ command: 3 }, 0],
    [{ command: 4, length: 4096 }, 1],
    [{ command: 6, length: 4096 }, 1],
    [{ command: 5, length: 4096 }, 22],
    [{ command: 8, length: 4096 }, 22],
    [{ command: 77 }, 22],
    [{ command: 0, offset: MiB, length: 1 }, 22],
    [{ command: 0, offset: MiB - 1, length: 2 }, 22],
    [{ command: 0, offset: 0xffff_ffff_ffff_ffffn, length: 2 }, 22],
    [{ command: 0, length: 0xffff_ffff }, 22],
    [{ command: 0, flags: 1, length: 1 }, 22],
    [{ command: 7, length: MiB }, 22],
    [{ command: 0, length: 0 }, 0],
  ];
  for (const structured of [true, false]) {
    using client = await RawClient.open(socketPath, 'vda', { structured });
    for (const [request, errno] of cases) {
      client.send({ ...request, cookie: 1n });
      if (request.command === 1) client.write(Buffer.alloc(request.length ?? 0, 0x25));
      client.send(last);
      const what = `command ${request.command} of ${request.length} bytes, structured: ${structured}`;
      if (structured) {
        const replies = await client.structured(2);
        t.equal(replies.get(1n)?.errno, errno, what);
        t.same(replies.get(99n)?.data[0]?.bytes, source.content.subarray(7, 16));
      } else {
        t.match(await client.simple(0), { cookie: 1n, errno }, what);
        t.same((await client.simple(9)).data, source.content.subarray(7, 16));
      }
    }
  }
  using client = await RawClient.open(socketPath, 'vda', { structured: false });
  client.send({ command: 0, cookie: 1n, flags: flagDontFragment, length: 1 });
  t.match(await client.simple(0), { errno: 22 }, 'a flag that only structured replies have');
  t.same(errors, []);
});

void t.test('a read may have 32 MiB and no more, in one chunk what one connection may hold', async (t) => {
  const source = bytesOf(33 * MiB);
  const { socketPath } = await serve(t, { vda: source }, { limits: { heldBytes: 2 * MiB } });
  const most = { command: 0, cookie: 1n, offset: 5, length: 32 * MiB };
  using client = await RawClient.open(socketPath, 'vda');
  client.send(most);
  const reply = (await client.structured(1)).get(1n);
  t.ok(reply && assemble(reply, 5, 32 * MiB)?.equals(source.content.subarray(5, 5 + 32 * MiB)));
  client.send({ ...most, length: 32 * MiB + 1 });
  t.match((await client.structured(1)).get(1n), { errno: 22 });
  for (const length of [32 * MiB + 1, 3 * MiB]) {
    client.send({ ...most, flags: flagDontFragment, length });
    t.match((await client.structured(1)).get(1n), { errno: 75, data: [] }, `${length} bytes in one chunk`);
  }
  client.send({ ...most, flags: flagDontFragment, length: MiB });
  t.equal((await client.structured(1)).get(1n)?.chunks.length, 1);
  using simple = await RawClient.open(socketPath, 'vda', { structured: false });
  simple.send(most);
  t.ok((await simple.simple(32 * MiB)).data.equals(source.content.subarray(5, 5 + 32 * MiB)));
});

void t.test('who takes his leave gets his answers first', async (t) => {
  const source = bytesOf(MiB);
  const gate = new Gate();
  source.onRead = () => gate.pass();
  const { socketPath, errors, server } = await serve(t, { vda: source });
  using client = await RawClient.open(socketPath, 'vda', { structured: false });
  client.send({ command: 0, cookie: 1n, length: 10 }, { command: 2, cookie: 2n }, { command: 3, cookie: 3n });
  await gate.reached(1);
  gate.open();
  t.same((await client.simple(10)).data, source.content.subarray(0, 10));
  t.same(await client.readToEnd(), Buffer.alloc(0), 'and nothing after');
  await client.closed;
  await clientsLeft(server, 0);
  t.same(errors, []);
});

void t.test('a server that is put away ends what runs, and takes its socket with it', async (t) => {
  const source = bytesOf(MiB);
  const gate = new Gate();
  const signals: (AbortSignal | undefined)[] = [];
  source.onRead = (_, signal) => {
    signals.push(signal);
    return gate.pass();
  };
  const cache = new ReadCache();
  const { blockBytes } = cache;
  const further = await serve(t, { vda: bytesOf(MiB) }, { cache });
  await using neighbour = await connectTo(further.socketPath);
  await neighbour.read(0, 10);
  const { server, socketPath, errors } = await serve(t, { vda: source, vdb: bytesOf(MiB) }, { cache });
  await using reader = await connectTo(socketPath, [], 'vdb');
  await reader.read(0, 10);
  await using client = await connectTo(socketPath);
  const reads = [client.read(0, 10), client.read(500_000, 10), client.read(0, MiB)];
  const ends = reads.map((read) => t.rejects(read, { code: 'NBD_CLOSED', retryable: true }));
  using waiting = await RawClient.connect(socketPath);
  await gate.reached(4);
  await Promise.all([server[Symbol.asyncDispose](), server[Symbol.asyncDispose]()]);
  await Promise.all(ends);
  await waiting.closed;
  t.equal(server.connections, 0);
  t.ok(signals.every((signal) => signal?.aborted === true));
  await t.rejects(connectTo(socketPath), { code: 'NBD_UNREACHABLE' });
  // What a source still brings belongs to nobody.
  gate.open();
  await new Promise((resolve) => void setImmediate(resolve));
  t.equal(cache.heldBytes, blockBytes, 'of what is left only what others have read');
  t.same(errors, [], 'nobody hears of reads that nobody waits for');
});

void t.test(
  'a client that goes in the middle holds nobody up, and what waited for its turn is not read',
  async (t) => {
    const source = bytesOf(MiB);
    const gate = new Gate();
    source.onRead = () => gate.pass();
    const limits = { heldBytes: 512 * KiB };
    const { server, socketPath, errors } = await serve(t, { vda: source, vdb: bytesOf(MiB) }, { limits });
    const client = await RawClient.open(socketPath, 'vda');
    for (const [index, length] of [10, 300 * KiB, MiB].entries())
      client.send({ command: 0, cookie: BigInt(index), offset: 0, length });
    await gate.reached(1);
    client.socket.destroy();
    await clientsLeft(server, 0);
    gate.open();
    await using other = await connectTo(socketPath, [], 'vdb');
    for (let round = 0; round < 50; round += 1) await other.read(0, 10);
    t.same(source.reads, [0]);
    await using again = await connectTo(socketPath);
    t.same(await again.read(0, 10), source.content.subarray(0, 10));
    t.same(errors, []);
  },
);
