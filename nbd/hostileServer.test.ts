import type { Socket } from 'node:net';
import t from 'tap';
import { NbdClient } from './client.ts';
import {
  chunk,
  dataChunk,
  errorChunk,
  FakeServer,
  holeChunk,
  honestBytes,
  honestGreeting,
  optionReply,
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
  options: { metaContexts?: readonly string[]; signal?: AbortSignal } = {},
): Promise<NbdClient> =>
  NbdClient.connect({ socketPath: server.socketPath, exportName: 'vda', answerMs, ...options });

const honest = (request: FakeRequest): Buffer =>
  dataChunk(request, request.offsetBytes, honestBytes(request.offsetBytes, request.lengthBytes));

void t.test('a server that negotiates wrongly is an error of its own kind', async (t) => {
  const cases: Record<string, [Script, { code: string; message?: RegExp; hint?: RegExp }]> = {
    'wrong magic': [{ greeting: Buffer.from('HTTP/1.1 400 Bad Req') }, { code: 'NBD_PROTOCOL' }],
    'old style': [
      { greeting: Buffer.concat([honestGreeting.subarray(0, 16), u16(0)]) },
      { code: 'NBD_PROTOCOL' },
    ],
    'no structured replies': [
      { answerOption: (option) => (option === 8 ? optionReply(8, 0x80000001) : undefined) },
      { code: 'NBD_SERVER_ERROR' },
    ],
    'wrong magic of a reply': [{ answerOption: () => Buffer.alloc(20, 1) }, { code: 'NBD_PROTOCOL' }],
    'reply to another option': [{ answerOption: () => optionReply(3, 1) }, { code: 'NBD_PROTOCOL' }],
    'oversize reply': [
      { answerOption: () => Buffer.concat([u64(0x3e889045565a9n), u32(8), u32(1), u32(0xffffffff)]) },
      { code: 'NBD_PROTOCOL' },
    ],
    'unknown export': [
      {
        answerOption: (o) => (o === 7 ? optionReply(7, 0x80000006, Buffer.from('no\u001b[31m')) : undefined),
      },
      { code: 'NBD_EXPORT_NOT_FOUND', message: /unknown export: no \[31m/ },
    ],
    'no size': [
      { answerOption: (o) => (o === 7 ? optionReply(7, 1) : undefined) },
      { code: 'NBD_PROTOCOL', message: /without telling its size/ },
    ],
    'size beyond 2^53': [
      {
        answerOption: (o) =>
          o === 7 ? optionReply(7, 3, Buffer.concat([u16(0), u64(1n << 60n), u16(1)])) : undefined,
      },
      { code: 'NBD_PROTOCOL' },
    ],
    'blocks of 3 bytes': [{ blocks: [3, 4096, MiB] }, { code: 'NBD_PROTOCOL' }],
    'blocks of 1 MiB': [{ blocks: [MiB, MiB, MiB] }, { code: 'NBD_PROTOCOL' }],
    'largest below smallest block': [{ blocks: [4096, 4096, 512] }, { code: 'NBD_PROTOCOL' }],
    'missing context': [
      { contexts: { 'qemu:allocation-depth': 1 } },
      { code: 'NBD_CONTEXT_MISSING', message: /base:allocation/, hint: /qemu:allocation-depth/ },
    ],
    'a context that was not asked for': [
      {
        answerOption: (o) =>
          o === 10 ? optionReply(10, 4, Buffer.concat([u32(1), Buffer.from('x:y')])) : undefined,
      },
      { code: 'NBD_PROTOCOL' },
    ],
  };
  for (const [name, [script, expected]] of Object.entries(cases)) {
    const server = await FakeServer.start(t, script);
    await t.rejects(connectTo(server, { metaContexts: [allocation] }), expected, name);
  }
});

void t.test(
  'everything is asked for before the server says a word, so that negotiations are short',
  async (t) => {
    const asked = Promise.withResolvers<void>();
    const options: number[] = [];
    const server = await FakeServer.start(t, {
      // The greeting comes when the last option has.
      greeting: Buffer.alloc(0),
      answerOption: (option) => {
        options.push(option);
        if (option === 7) asked.resolve();
        return Buffer.alloc(0);
      },
    });
    const given = new AbortController();
    const connecting = connectTo(server, { metaContexts: [allocation], signal: given.signal });
    connecting.catch(() => 'looked at below');
    await asked.promise;
    t.same(options, [8, 9, 10, 7], 'structured replies, contexts, the export');
    given.abort(new Error('enough'));
    await t.rejects(connecting, { message: 'enough' });
  },
);

void t.test('a reply that breaks the protocol ends the connection', async (t) => {
  const bytes = (length: number): Buffer => Buffer.alloc(length, 1);
  const replies: Record<string, (request: FakeRequest) => readonly Buffer[]> = {
    'wrong magic': () => [bytes(20)],
    'simple reply': ({ cookie }) => [u32(0x67446698), u32(0), u64(cookie), bytes(4096)],
    'unknown cookie': (r) => [dataChunk({ ...r, cookie: r.cookie + 77n }, r.offsetBytes, bytes(4096))],
    'cookie beyond 2^53': (r) => [dataChunk({ ...r, cookie: r.cookie + (1n << 63n) }, 0, bytes(4096))],
    'oversize data': (r) => [chunk(r, 1, u64(r.offsetBytes), { claimed: 0xffffffff })],
    'data longer than the request': (r) => [dataChunk(r, r.offsetBytes, bytes(4097))],
    'data before the request': (r) => [dataChunk(r, r.offsetBytes - 1, bytes(4096))],
    'data behind the request': (r) => [dataChunk(r, r.offsetBytes + 1, bytes(4096))],
    'data without bytes': (r) => [dataChunk(r, r.offsetBytes, bytes(0))],
    'offset beyond 2^53': (r) => [chunk(r, 1, Buffer.concat([u64(1n << 63n), bytes(9)]))],
    'hole behind the request': (r) => [holeChunk(r, r.offsetBytes + 4000, 4096)],
    'hole of no length': (r) => [holeChunk(r, r.offsetBytes, 0)],
    'missing bytes': (r) => [dataChunk(r, r.offsetBytes, bytes(4095))],
    'no bytes at all': (r) => [chunk(r, 0, bytes(0))],
    'missing in the middle': (r) => [
      dataChunk(r, r.offsetBytes, bytes(1000), true),
      dataChunk(r, r.offsetBytes + 1001, bytes(3095)),
    ],
    'all of it twice': (r) => [
      dataChunk(r, r.offsetBytes, bytes(4096), true),
      dataChunk(r, r.offsetBytes, bytes(4096)),
    ],
    'twice in place of missing': (r) => [
      dataChunk(r, r.offsetBytes, bytes(2048), true),
      dataChunk(r, r.offsetBytes, bytes(2048)),
    ],
    'overlap in place of missing': (r) => [
      dataChunk(r, r.offsetBytes, bytes(2000), true),
      dataChunk(r, r.offsetBytes + 1999, bytes(2096)),
      holeChunk(r, r.offsetBytes + 4095, 1),
    ],
    'a status for a read': (r) => [statusChunk(r, 7, [[4096, 0]])],
    'nothing, and no end': (r) => [chunk(r, 0, bytes(0), { more: true })],
    'unknown type': (r) => [chunk(r, 77, bytes(8))],
    'malformed error': (r) => [chunk(r, 0x8001, Buffer.concat([u32(5), u16(99)]))],
    'oversize error': (r) => [chunk(r, 0x8001, u32(5), { claimed: 100_000 })],
    'error without a number': (r) => [errorChunk(r, 0, 'fine')],
    'a reply after the end': (r) => [honest(r), honest(r)],
  };
  // Where several checks would notice, the first one must: before anything is placed or made room for.
  const messages: Record<string, RegExp> = {
    'simple reply': /a simple reply/,
    'oversize data': /type 1 with 4294967295 bytes/,
    'data longer than the request': /4097 bytes at 8192 for/,
    'data before the request': /4096 bytes at 8191 for/,
    'data behind the request': /4096 bytes at 8193 for/,
    'data without bytes': /type 1 with 8 bytes/,
    'hole behind the request': /4096 bytes at 12192 for/,
    'hole of no length': /a hole of no length/,
    'missing bytes': /1 bytes are missing/,
    'all of it twice': /came twice/,
  };
  for (const [name, reply] of Object.entries(replies)) {
    const server = await FakeServer.start(t, {
      onRequest: (request, peer) => {
        if (request.offsetBytes === 8192) peer.write(Buffer.concat(reply(request)));
      },
    });
    await using client = await connectTo(server);
    const neighbour = client.read(65536, 4096);
    neighbour.catch(() => {}); // looked at below
    if (name === 'a reply after the end') await client.read(8192, 4096);
    else {
      const expected = { code: 'NBD_PROTOCOL', retryable: false, message: messages[name] ?? /./ };
      await t.rejects(client.read(8192, 4096), expected, name);
    }
    await t.rejects(
      neighbour,
      { code: 'NBD_PROTOCOL', message: /"vda" at / },
      `${name}: the others in flight`,
    );
    await t.rejects(client.read(0, 1), { code: 'NBD_CLOSED' }, `${name}: whoever comes later`);
  }
});

void t.test('a status that breaks the protocol ends the connection', async (t) => {
  const replies: Record<string, (request: FakeRequest) => readonly Buffer[]> = {
    'descriptor of no length': (r) => [statusChunk(r, 7, [[0, 0]])],
    'no descriptors': (r) => [statusChunk(r, 7, [])],
    'no status': (r) => [chunk(r, 0, Buffer.alloc(0))],
    'half a descriptor': (r) => [chunk(r, 5, Buffer.alloc(16, 1))],
    'unknown context': (r) => [statusChunk(r, 8, [[MiB, 0]])],
    'the same context twice': (r) => [statusChunk(r, 7, [[MiB, 0]], true), statusChunk(r, 7, [[MiB, 0]])],
    'descriptors beyond the range': (r) => [
      statusChunk(r, 7, [
        [MiB, 0],
        [1, 0],
      ]),
    ],
    oversize: (r) => [chunk(r, 5, u32(7), { claimed: 0xfffffffc })],
    'data for a status': (r) => [dataChunk(r, 0, Buffer.alloc(9))],
  };
  for (const [name, reply] of Object.entries(replies)) {
    const onRequest = (request: FakeRequest, peer: Socket): void =>
      void peer.write(Buffer.concat(reply(request)));
    const server = await FakeServer.start(t, { onRequest });
    await using client = await connectTo(server, { metaContexts: [allocation] });
    await t.rejects(client.blockStatus(allocation, 0, MiB), { code: 'NBD_PROTOCOL' }, name);
  }
});
