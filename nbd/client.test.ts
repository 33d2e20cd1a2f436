import { once } from 'node:events';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { NbdClient } from './client.ts';
import {
  chunk,
  dataChunk,
  errorChunk,
  FakeServer,
  holeChunk,
  honestBytes,
  statusChunk,
  u16,
  u32,
  u64,
} from './fakeServer.ts';
import type { FakeRequest, Script } from './fakeServer.ts';

const MiB = 1024 * 1024;
const allocation = 'base:allocation';
const answerMs = 5_000;

const connectTo = (
  server: FakeServer,
  options: { metaContexts?: readonly string[]; answerMs?: number } = {},
): Promise<NbdClient> =>
  NbdClient.connect({ socketPath: server.socketPath, exportName: 'vda', answerMs, ...options });

const honest = (request: FakeRequest): Buffer =>
  dataChunk(request, request.offsetBytes, honestBytes(request.offsetBytes, request.lengthBytes));

void t.test('a server that does not open the export is given up in time', async (t) => {
  const silent = await FakeServer.start(t, { answerOption: () => Buffer.alloc(0) });
  const expected = { code: 'NBD_TIMEOUT', retryable: true };
  await t.rejects(connectTo(silent, { answerMs: 50 }), expected);
  const leaving = await FakeServer.start(t, {
    answerOption: () => {
      for (const peer of leaving.peers) peer.end();
      return Buffer.alloc(0);
    },
  });
  await t.rejects(connectTo(leaving), { code: 'NBD_CLOSED', retryable: true });
  const signal = AbortSignal.abort(new Error('enough'));
  const options = { socketPath: silent.socketPath, exportName: 'vda', answerMs };
  await t.rejects(NbdClient.connect({ ...options, signal }), { message: 'enough' });
  const stop = new AbortController();
  const opening = NbdClient.connect({ ...options, signal: stop.signal });
  stop.abort(new Error('in the middle'));
  await t.rejects(opening, { message: 'in the middle' });
});

void t.test('where nobody listens the server is unreachable', async (t) => {
  for (const socketPath of [join(t.testdir({}), 'none'), `/tmp/${'long'.repeat(60)}`])
    await t.rejects(NbdClient.connect({ socketPath, exportName: '', answerMs }), {
      code: 'NBD_UNREACHABLE',
      retryable: true,
    });
});

void t.test('a status is asked for until the range is complete, and cut and joined', async (t) => {
  const server = await FakeServer.start(t, {
    contexts: { [allocation]: 7, 'qemu:dirty-bitmap:b': 9 },
    onRequest: (request, peer) => {
      const first = request.offsetBytes === 0;
      peer.write(statusChunk(request, 9, [[5 * MiB, 1]], true));
      peer.write(
        statusChunk(
          request,
          7,
          first
            ? [
                [1000, 0],
                [24, 0],
                [1024, 3],
              ]
            : [[MiB, 3]],
        ),
      );
    },
  });
  const metaContexts = [allocation, 'qemu:dirty-bitmap:b'];
  await using client = await connectTo(server, { metaContexts });
  t.same(await client.blockStatus(allocation, 0, 8192), [
    { offsetBytes: 0, lengthBytes: 1024, flags: 0 },
    { offsetBytes: 1024, lengthBytes: 7168, flags: 3 },
  ]);
  t.equal(server.requests.length, 2);
  t.same(await client.blockStatus('qemu:dirty-bitmap:b', 5, 10), [
    { offsetBytes: 5, lengthBytes: 10, flags: 1 },
  ]);
  t.same(await client.blockStatus(allocation, 5, 0), []);
  await t.rejects(client.blockStatus('qemu:dirty-bitmap:c', 0, 1), { code: 'NBD_CONTEXT_MISSING' });
});

void t.test('replies may come in any order, in pieces of any order, and mixed with each other', async (t) => {
  const waiting: FakeRequest[] = [];
  const server = await FakeServer.start(t, {
    onRequest: (request, peer) => {
      waiting.push(request);
      if (waiting.length < 8) return;
      const cut = (r: FakeRequest, from: number, to: number, more: boolean): Buffer =>
        dataChunk(r, r.offsetBytes + from, honestBytes(r.offsetBytes + from, to - from), more);
      const last = waiting.toReversed();
      const all = Buffer.concat([
        ...last.map((r) => cut(r, 3000, 4096, true)),
        ...waiting.map((r) => cut(r, 0, 1000, true)),
        ...waiting.map((r) => holeChunk(r, r.offsetBytes + 1000, 500, true)),
        ...last.map((r) => cut(r, 1500, 3000, true)),
        ...last.map((r) => chunk(r, 0, Buffer.alloc(0))),
      ]);
      for (let at = 0; at < all.length; at += 37) peer.write(all.subarray(at, at + 37));
    },
  });
  await using client = await connectTo(server);
  const offsets = [5, 100_000, 4096, 65_536, 300_000, 12_345, 999_999, 0];
  const answers = await Promise.all(offsets.map((offset) => client.read(offset, 4096)));
  for (const [index, offset] of offsets.entries()) {
    const expected = honestBytes(offset, 4096);
    expected.fill(0, 1000, 1500);
    t.ok(answers[index]?.equals(expected), `the bytes at ${offset}`);
  }
});

void t.test('a request that the server refuses is refused alone', async (t) => {
  const server = await FakeServer.start(t, {
    onRequest: (request, peer) => {
      if (request.offsetBytes === 0) peer.write(errorChunk(request, 5, 'sector \u0007gone'));
      else if (request.offsetBytes === 4096) {
        peer.write(dataChunk(request, 4096, Buffer.alloc(10), true));
        peer.write(chunk(request, 0x8002, Buffer.concat([u32(12), u16(0), u64(4106)])));
      } else peer.write(honest(request));
    },
  });
  await using client = await connectTo(server);
  const good = client.read(8192, 100);
  const refused = {
    code: 'NBD_SERVER_ERROR',
    errno: 5,
    retryable: false,
    message: /read 100 .*EIO: sector gone/,
  };
  await t.rejects(client.read(0, 100), refused);
  await t.rejects(client.read(4096, 100), { code: 'NBD_SERVER_ERROR', errno: 12, retryable: true });
  t.same(await good, honestBytes(8192, 100));
  t.same(await client.read(9000, 100), honestBytes(9000, 100), 'the connection goes on');
});

void t.test('a server that stops answering is given up, with everything that waits for it', async (t) => {
  const server = await FakeServer.start(t, {
    onRequest: (request, peer) => {
      if (request.offsetBytes < 4096) peer.write(honest(request));
      else if (request.offsetBytes === 4096) peer.write(honest(request).subarray(0, 50)); // stuck in the middle
    },
  });
  await using client = await connectTo(server, { answerMs: 60 });
  t.same(await client.read(0, 100), honestBytes(0, 100));
  const reads = Array.from({ length: 40 }, (_, index) => client.read(4096 * (index + 1), 100));
  for (const result of await Promise.allSettled(reads))
    t.match(result, { status: 'rejected', reason: { code: 'NBD_TIMEOUT', retryable: true } });
  await t.rejects(client.read(0, 100), { code: 'NBD_CLOSED', retryable: true });
});

void t.test('a process that was held up itself does not blame the server', async (t) => {
  const server = await FakeServer.start(t, {
    onRequest: (request, peer) => void peer.write(honest(request)),
  });
  await using client = await connectTo(server, { answerMs: 100 });
  const read = client.read(0, 100);
  await once(peerOf(server), 'data');
  const until = performance.now() + 250;
  while (performance.now() < until); // the answer is in the socket, and nobody looks
  t.same(await read, honestBytes(0, 100));
});

function peerOf(server: FakeServer): Socket {
  const [peer] = server.peers;
  if (peer === undefined) throw new Error('nobody is connected');
  return peer;
}

void t.test('a server that closes in the middle leaves no request waiting', async (t) => {
  const server = await FakeServer.start(t, {
    onRequest: (request, peer) => {
      if (request.offsetBytes === 4096) peer.end(honest(request).subarray(0, 99));
    },
  });
  await using client = await connectTo(server);
  const first = client.read(0, 100);
  first.catch(() => {}); // looked at below
  await t.rejects(client.read(4096, 100), { code: 'NBD_CLOSED', retryable: true });
  await t.rejects(first, { code: 'NBD_CLOSED' });
});

void t.test('an aborted read rejects at once, and the connection goes on', async (t) => {
  const held: (() => void)[] = [];
  const server = await FakeServer.start(t, {
    blocks: [1, 4096, 4096],
    onRequest: (request, peer) => held.push(() => void peer.write(honest(request))),
  });
  await using client = await connectTo(server);
  const stop = new AbortController();
  const long = client.read(0, 20 * 4096, stop.signal);
  const other = client.read(100_000, 10);
  stop.abort(new Error('enough'));
  await t.rejects(long, { message: 'enough' });
  await t.rejects(client.read(0, 1, stop.signal), { message: 'enough' });
  // The 16 pieces that the server has are answered; the other 4 are never sent.
  while (held.length < 16) await once(peerOf(server), 'data');
  for (const answer of held.splice(0)) answer();
  while (held.length < 1) await once(peerOf(server), 'data');
  held[0]?.();
  t.same(await other, honestBytes(100_000, 10));
  t.equal(server.requests.length, 17);
});

void t.test('requests keep to the block sizes of the server', async (t) => {
  const cases: [Script['blocks'], number][] = [
    [[4096, 4096, 12_288], 4096],
    [[1, 4096, 10_000], 1],
    [null, 512],
    [[65_536, 65_536, 0xffffffff], 65_536],
  ];
  for (const [blocks = null, minimum] of cases) {
    const sizeBytes = 3 * MiB;
    const onRequest = (request: FakeRequest, peer: Socket): void => void peer.write(honest(request));
    const server = await FakeServer.start(t, { blocks, sizeBytes, onRequest });
    await using client = await connectTo(server);
    for (const [offset, length] of [
      [1, 1],
      [4095, 2],
      [10_001, 50_003],
      [sizeBytes - 1, 1],
      [0, sizeBytes],
    ] as const)
      t.ok((await client.read(offset, length)).equals(honestBytes(offset, length)), `${length} at ${offset}`);
    const largest = Math.min(blocks?.[2] ?? sizeBytes, 2 * MiB);
    for (const { offsetBytes, lengthBytes } of server.requests) {
      const fits = offsetBytes % minimum === 0 && lengthBytes % minimum === 0 && lengthBytes <= largest;
      if (!fits) t.fail(`${lengthBytes} bytes at ${offsetBytes} for blocks of ${String(blocks)}`);
    }
  }
});

void t.test('what is not within the volume is not asked for', async (t) => {
  const server = await FakeServer.start(t, {});
  await using client = await connectTo(server);
  for (const [offset, length] of [
    [-1, 1],
    [0, -1],
    [0.5, 1],
    [MiB, 1],
    [0, MiB + 1],
    [Number.NaN, 1],
  ] as const)
    await t.rejects(client.read(offset, length), { code: 'NBD_RANGE_INVALID' }, `${length} at ${offset}`);
  t.same(await client.read(MiB, 0), Buffer.alloc(0));
  t.same(server.requests, []);
});

void t.test('a client that is put away says goodbye, and leaves nobody waiting', async (t) => {
  const server = await FakeServer.start(t, {});
  const client = await connectTo(server);
  const read = client.read(0, 100);
  read.catch(() => {}); // looked at below
  await once(peerOf(server), 'data');
  await client[Symbol.asyncDispose]();
  await t.rejects(read, { code: 'NBD_CLOSED', retryable: false });
  t.same(
    server.requests.map(({ command }) => command),
    [0, 2],
  );
  await client[Symbol.asyncDispose]();
  await t.rejects(client.read(0, 100), { code: 'NBD_CLOSED' });
});
