import t from 'tap';
import type { Test } from 'tap';
import { NbdClient } from './client.ts';
import { u16, u32, u64 } from './fakeServer.ts';
import { randomFrom } from './fixture.ts';
import {
  assemble,
  encodeRawRequest,
  flagDontFragment,
  flagRequestOne,
  RawClient,
  rawClientFlags,
  rawContexts,
  rawGo,
  rawOption,
  rawText,
} from './rawClient.ts';
import type { RawReply, RawRequest } from './rawClient.ts';
import { ReadCache } from './readCache.ts';
import { contentOf, ScriptedSource } from './scriptedSource.ts';
import type { ServerLimits } from './server.ts';
import { clientsLeft, serve as serveSources } from './serverFixture.ts';
import type { Served } from './serverFixture.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);
const random = randomFrom(seed);
const below = (limit: number): number => Math.floor(random() * limit);
const oneOf = <T>(items: readonly T[]): T => {
  const item = items[below(items.length)];
  if (item === undefined) throw new Error('nothing to choose from');
  return item;
};

const { content, extents } = contentOf(random, [
  { lengthBytes: 200 * KiB + 1, zero: false },
  { lengthBytes: 400 * KiB, zero: true },
  { lengthBytes: 2 * MiB, zero: false },
]);

const serve = (t: Test, limits: Partial<ServerLimits> = {}): Promise<Served> =>
  serveSources(
    t,
    { vda: new ScriptedSource(content, extents), Größe: new ScriptedSource(content) },
    { limits, cache: new ReadCache({ blockBytes: 64 * KiB, maxBytes: MiB }) },
  );

async function requireHonestService({ socketPath }: Served): Promise<void> {
  await using client = await NbdClient.connect({ socketPath, exportName: 'vda', answerMs: 20_000 });
  const bytes = await client.read(100 * KiB, 200 * KiB);
  if (!bytes.equals(content.subarray(100 * KiB, 300 * KiB))) throw new Error('not the bytes of the volume');
}

async function greeted(socketPath: string, flags = rawClientFlags): Promise<RawClient> {
  const client = await RawClient.connect(socketPath);
  client.write(flags);
  await client.read(18);
  return client;
}

const types = (replies: readonly { readonly type: number }[]): readonly string[] =>
  replies.map(({ type }) => (type < 0x8000_0000 ? `${type}` : `error ${type - 0x8000_0000}`));

void t.test('each option has the answer that the specification gives it', async (t) => {
  const { socketPath, errors } = await serve(t);
  using client = await greeted(socketPath);
  const [unsupported, invalid, unknown, tooBig] = ['error 1', 'error 3', 'error 6', 'error 9'];
  const ask = async (option: Buffer): Promise<readonly string[]> => types(await client.ask(option));
  t.same(await ask(rawContexts('vda', ['base:allocation'])), [invalid], 'contexts need structured replies');
  for (const [name, option, answer] of [
    ['TLS', rawOption(5), unsupported],
    ['extended headers', rawOption(11), unsupported],
    ['nonsense', rawOption(0xffff_fffe, Buffer.alloc(1000)), unsupported],
    ['LIST with a payload', rawOption(3, Buffer.alloc(1)), invalid],
    ['STRUCTURED_REPLY with a payload', rawOption(8, Buffer.alloc(1)), invalid],
    ['GO to nowhere', rawGo('vdb'), unknown],
    ['INFO about nothing', rawGo('', 6), unknown],
    ['GO without a payload', rawOption(7), invalid],
    [
      'GO with a name that is too short',
      rawOption(7, Buffer.concat([u32(9), Buffer.from('vda'), u16(0)])),
      invalid,
    ],
    [
      'GO with less infos than it says',
      rawOption(7, Buffer.concat([rawText('vda'), u16(2), u16(3)])),
      invalid,
    ],
    ['GO with more behind it', rawOption(7, Buffer.concat([rawText('vda'), u16(0), u16(3)])), invalid],
    ['GO with a name of 2^32 bytes', rawOption(7, Buffer.concat([u32(0xffff_ffff), u16(0)])), invalid],
    ['GO of 100 KiB', rawOption(7, Buffer.alloc(100 * KiB)), tooBig],
  ] as const)
    t.same(await ask(option), [answer], name);
  const listed = await client.ask(rawOption(3));
  t.same(types(listed), ['2', '2', '1']);
  t.same(
    listed.slice(0, 2).map(({ payload }) => payload.toString('utf8', 4)),
    ['vda', 'Größe'],
  );
  t.same(await ask(rawOption(8)), ['1']);
  for (const [name, option, answer] of [
    ['contexts of nothing', rawContexts('vdb', ['base:allocation']), [unknown]],
    [
      'more contexts than there are bytes',
      rawOption(10, Buffer.concat([rawText('vda'), u32(0xffff_ffff)])),
      [invalid],
    ],
    ['contexts without a number', rawOption(10, rawText('vda')), [invalid]],
    ['none selected', rawContexts('vda', []), ['1']],
    ['another one selected', rawContexts('vda', ['qemu:dirty-bitmap:b', 'base:']), ['1']],
    ['all listed', rawContexts('vda', [], 9), ['4', '1']],
    ['a name space listed', rawContexts('vda', ['base:'], 9), ['4', '1']],
    ['another one listed', rawContexts('vda', ['qemu:'], 9), ['1']],
    ['the one selected', rawContexts('Größe', ['x:y', 'base:allocation']), ['4', '1']],
  ] as const)
    t.same(await ask(option), answer, name);
  const info = await client.ask(rawGo('vda', 6));
  t.same(types(info), ['3', '3', '1']);
  const flags = 1 | 2 | 4 | 128 | 256;
  t.same(info[0]?.payload, Buffer.concat([u16(0), u64(content.length), u16(flags)]));
  t.same(info[1]?.payload, Buffer.concat([u16(3), u32(1), u32(4096), u32(32 * MiB)]));
  t.same(await ask(rawGo('vda')), ['3', '3', '1']);
  client.send({ command: 7, cookie: 1n, length: 512 });
  t.match((await client.structured(1)).get(1n), { errno: 22 }, 'the context was selected for another export');
  using second = await greeted(socketPath);
  for (const option of [
    rawOption(8),
    rawContexts('vda', ['base:allocation']),
    rawContexts('vdb', []),
    rawGo('vda'),
  ])
    await second.ask(option);
  second.send({ command: 7, cookie: 1n, length: 512 });
  t.match(
    (await second.structured(1)).get(1n),
    { errno: 22 },
    'a selection that fails takes the one before away',
  );
  t.same(errors, []);
});

void t.test('exports are opened in the old way, and a client that only asks leaves in peace', async (t) => {
  const { server, socketPath, errors } = await serve(t);
  const opened: RawClient[] = [];
  for (const [clientFlags, padding] of [
    [3, 0],
    [1, 124],
    [0, 124],
  ] as const) {
    const client = await greeted(socketPath, u32(clientFlags));
    opened.push(client);
    client.write(rawOption(1, Buffer.from('Größe')));
    t.same(
      await client.read(10 + padding),
      Buffer.concat([u64(content.length), u16(1 | 2 | 4 | 256), Buffer.alloc(padding)]),
    );
    client.send({ command: 0, cookie: 4n, offset: 10, length: 20 });
    t.same((await client.simple(20)).data, content.subarray(10, 30));
  }
  using asking = await greeted(socketPath);
  t.same(types(await asking.ask(rawOption(2))), ['1']);
  t.same(await asking.readToEnd(), Buffer.alloc(0));
  using staying = await RawClient.connect(socketPath, true);
  staying.write(rawClientFlags, rawOption(2));
  await staying.readToEnd();
  using silent = await greeted(socketPath);
  silent.socket.end();
  await silent.closed;
  for (const client of opened) client.socket.destroy();
  await clientsLeft(server, 0); // also of him who keeps his end open
  t.same(errors, [], 'nobody has done anything wrong');
});

void t.test('what cannot be understood ends the connection, and is reported', async (t) => {
  const served = await serve(t, { options: 20 });
  const { socketPath, errors } = served;
  const opening = Buffer.concat([rawClientFlags, rawOption(8), rawGo('vda')]);
  const cases: readonly (readonly [string, Buffer, RegExp])[] = [
    ['flags from the future', u32(4), /client flags 0x4/],
    ['another protocol', Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'), /client flags/],
    ['no magic', Buffer.concat([rawClientFlags, Buffer.alloc(16)]), /an option starts with 0x0/],
    [
      'an option of 4 GiB',
      Buffer.concat([rawClientFlags, u64(0x49484156454f5054n), u32(99), u32(0xffff_ffff)]),
      /of 4294967295 bytes/,
    ],
    ['an old client with new options', Buffer.concat([u32(0), rawOption(3)]), /knows only the first/],
    [
      'the old way to nowhere',
      Buffer.concat([rawClientFlags, rawOption(1, Buffer.from('vdb'))]),
      /no export/,
    ],
    [
      'an old name without end',
      Buffer.concat([rawClientFlags, rawOption(1, Buffer.alloc(17 * KiB))]),
      /a name of/,
    ],
    [
      'options without end',
      Buffer.concat([rawClientFlags, ...Array.from({ length: 21 }, () => rawOption(3))]),
      /more than 20/,
    ],
    ['a request without magic', Buffer.concat([opening, Buffer.alloc(28)]), /a request starts with 0x0/],
    [
      'a write without end',
      Buffer.concat([opening, encodeRawRequest({ command: 1, cookie: 1n, length: 33 * MiB })]),
      /a write of/,
    ],
  ];
  for (const [name, bytes, message] of cases) {
    using client = await RawClient.connect(socketPath);
    client.write(bytes);
    await client.readToEnd();
    t.match(errors.splice(0), [{ code: 'NBD_PROTOCOL', message }], name);
  }
  await requireHonestService(served);
});

void t.test('who opens no export in time has to go, with all that he does instead', async (t) => {
  const { socketPath, errors } = await serve(t, { handshakeMs: 30 });
  using silent = await RawClient.connect(socketPath);
  using slow = await greeted(socketPath);
  await slow.ask(rawOption(8));
  using deaf = await RawClient.connect(socketPath);
  deaf.socket.pause();
  deaf.write(rawClientFlags, ...Array.from({ length: 200 }, () => rawOption(3)));
  await Promise.all([silent.readToEnd(), slow.readToEnd()]);
  deaf.socket.resume();
  await deaf.readToEnd();
  t.same(
    errors.map(({ code }) => code),
    ['NBD_TIMEOUT', 'NBD_TIMEOUT', 'NBD_TIMEOUT'],
  );
  await using client = await NbdClient.connect({ socketPath, exportName: 'vda', answerMs: 20_000 });
  await using second = await NbdClient.connect({ socketPath, exportName: 'vda', answerMs: 20_000 });
  using witness = await RawClient.connect(socketPath);
  await witness.readToEnd(); // the deadline of a later connection has passed
  t.same(await client.read(0, 10), content.subarray(0, 10), 'who has opened one may stay');
  t.same(await second.read(0, 10), content.subarray(0, 10));
});

void t.test('more connections than there may be are closed, those that are there go on', async (t) => {
  const served = await serve(t, { connections: 3 });
  const { socketPath, server } = served;
  const clients = await Promise.all([1, 2, 3].map(() => RawClient.open(socketPath, 'vda')));
  using further = await RawClient.connect(socketPath);
  t.same(await further.readToEnd(), Buffer.alloc(0));
  t.equal(server.connections, 3);
  for (const client of clients) {
    client.send({ command: 0, cookie: 1n, length: 10 });
    t.same((await client.structured(1)).get(1n)?.data[0]?.bytes, content.subarray(0, 10));
  }
  clients[0]?.socket.destroy();
  await clientsLeft(server, 2);
  await requireHonestService(served);
  for (const client of clients) client.socket.destroy();
});

/** What a request must be answered with: an error number, or the bytes or the status of a range. */
function errnoFor(
  { command, flags = 0, offset = 0, length = 0 }: RawRequest,
  agreed: { readonly structured: boolean; readonly allocation: boolean },
): number {
  if (command === 1 || command === 4 || command === 6) return 1;
  if (command === 3) return 0;
  if (command !== 0 && command !== 7) return 22;
  const known = command === 7 ? flagRequestOne : agreed.structured ? flagDontFragment : 0;
  if ((flags & ~known) !== 0 || (command === 7 && !agreed.allocation)) return 22;
  if (Number(offset) + length > content.length || (command === 7 && length === 0)) return 22;
  return 0;
}

function randomRequest(cookie: bigint): RawRequest {
  const command = oneOf([0, 0, 0, 0, 0, 0, 1, 3, 4, 6, 7, 7, 7, 5, 99]);
  const flags = oneOf([0, 0, 0, 0, flagDontFragment, flagRequestOne, 1]);
  const offset = below(20) === 0 ? BigInt(below(2 ** 31)) << 33n : below(content.length + 10);
  const length = oneOf([0, 1, 512, 4096, 65_536, below(2 * MiB), below(MiB), 0xffff_ffff - below(3)]);
  return { command, flags, cookie, offset, length: command === 1 ? length % (100 * KiB) : length };
}

function requireAnswer(request: RawRequest, reply: RawReply | undefined): void {
  const { command, flags = 0, offset = 0, length = 0 } = request;
  const start = Number(offset);
  if (reply === undefined) throw new Error('no answer');
  if (command === 0) {
    const bytes = assemble(reply, start, length);
    if (!bytes?.equals(content.subarray(start, start + length)))
      throw new Error('not the bytes of the volume');
    const contents = reply.chunks.filter(({ type }) => type === 1 || type === 2).length;
    if ((flags & flagDontFragment) !== 0 && contents > 1) throw new Error('in more than one chunk');
  }
  if (command !== 7) return;
  if ((flags & flagRequestOne) !== 0 && reply.descriptors.length !== 1)
    throw new Error('more than one descriptor');
  let position = start;
  for (const [bytes, kind] of reply.descriptors) {
    const extent = extents.find(({ offsetBytes, lengthBytes }) => position < offsetBytes + lengthBytes);
    const wanted = extent?.zero === true ? 3 : 0;
    if (bytes === 0 || kind !== wanted) throw new Error(`status ${kind} at ${position}`);
    position += bytes;
  }
  if (position === start || position > start + length) throw new Error(`a status to ${position}`);
}

void t.test('random requests, all at once, are answered as the specification says', async (t) => {
  const served = await serve(t);
  for (let round = 0; round < 40; round += 1) {
    const structured = round % 4 !== 0;
    const allocation = structured && round % 4 !== 1;
    using client = await RawClient.open(served.socketPath, 'vda', { structured, allocation });
    const requests = Array.from({ length: 1 + below(120) }, (_, index) =>
      randomRequest((BigInt(below(2 ** 31)) << 33n) + BigInt(index)),
    );
    for (const request of requests) {
      const bytes = encodeRawRequest(request);
      const cut = below(bytes.length);
      client.write(bytes.subarray(0, cut));
      client.write(bytes.subarray(cut), Buffer.alloc(request.command === 1 ? (request.length ?? 0) : 0, 7));
    }
    const replies = structured
      ? await client.structured(requests.length)
      : await simpleReplies(client, requests);
    for (const request of requests) {
      const reply = replies.get(request.cookie);
      const errno = errnoFor(request, { structured, allocation });
      const what = `round ${round}: command ${request.command}, flags ${request.flags}, ${request.length} at ${request.offset}`;
      if (reply?.errno !== errno) t.fail(`${what}: ${reply?.errno} instead of ${errno}`);
      else if (errno === 0)
        try {
          requireAnswer(request, reply);
        } catch (error) {
          t.fail(`${what}: ${String(error)}`);
        }
    }
  }
  t.same(served.errors, []);
});

async function simpleReplies(
  client: RawClient,
  requests: readonly RawRequest[],
): Promise<ReadonlyMap<bigint, RawReply>> {
  const byCookie = new Map(requests.map((request) => [request.cookie, request]));
  const replies = new Map<bigint, RawReply>();
  for (let left = requests.length; left > 0; left -= 1) {
    const header = await client.read(16);
    const cookie = header.readBigUInt64BE(8);
    const errno = header.readUInt32BE(4);
    const request = byCookie.get(cookie);
    if (header.readUInt32BE(0) !== 0x67446698 || request === undefined)
      throw new Error('no reply to anything');
    const bytes =
      errno === 0 && request.command === 0 ? await client.read(request.length ?? 0) : Buffer.alloc(0);
    const data = bytes.length === 0 ? [] : [{ offset: Number(request.offset ?? 0), bytes }];
    replies.set(cookie, { errno, chunks: [], data, descriptors: [] });
  }
  return replies;
}

/** What an honest client says from its first byte to its last. */
function honestSpeech(): Buffer {
  const options = [rawOption(8), rawOption(3), rawContexts('vda', ['base:allocation']), rawGo('vda', 6)];
  const chosen = options.filter(() => below(3) > 0);
  const requests = Array.from({ length: below(30) }, (_, index) => {
    const request = randomRequest(BigInt(index));
    return Buffer.concat([
      encodeRawRequest(request),
      Buffer.alloc(request.command === 1 ? (request.length ?? 0) : 0),
    ]);
  });
  const open = below(4) === 0 ? rawOption(1, Buffer.from('vda')) : rawGo('vda');
  return Buffer.concat([rawClientFlags, ...chosen, open, ...requests]);
}

function garbled(speech: Buffer): Buffer {
  let bytes: Buffer = Buffer.from(speech);
  for (let count = 1 + below(4); count > 0; count -= 1) {
    const at = below(bytes.length);
    switch (below(5)) {
      case 0:
        bytes = bytes.subarray(0, at);
        break;
      case 1:
        bytes = Buffer.concat([
          bytes.subarray(0, at),
          Buffer.alloc(below(40), below(256)),
          bytes.subarray(at),
        ]);
        break;
      case 2:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + below(40))]);
        break;
      default:
        bytes[at] = oneOf([0, 1, 0x7f, 0x80, 0xff, below(256)]);
    }
    if (bytes.length === 0) return bytes;
  }
  return bytes;
}

void t.test('nothing that a client says brings the server down, or costs the others anything', async (t) => {
  const served = await serve(t, { connections: 8 });
  const { server, socketPath, errors } = served;
  await using witness = await NbdClient.connect({ socketPath, exportName: 'vda', answerMs: 20_000 });
  for (let round = 0; round < 300; round += 1) {
    using client = await RawClient.connect(socketPath);
    const speech = garbled(honestSpeech());
    // Now and then somebody who listens to nothing, or who is gone before the end.
    if (below(5) === 0) client.socket.pause();
    for (let at = 0; at < speech.length; ) {
      const cut = Math.min(speech.length, at + 1 + below(oneOf([5, 100, 100_000])));
      client.write(speech.subarray(at, cut));
      at = cut;
      if (below(4) === 0) await new Promise((resolve) => void setImmediate(resolve));
    }
    if (below(3) === 0) client.socket.destroy();
    else client.socket.end();
    client.socket.resume();
    await client.readToEnd();
    const offset = below(content.length - 100);
    const bytes = await witness.read(offset, 100);
    if (!bytes.equals(content.subarray(offset, offset + 100))) t.fail(`round ${round}`);
  }
  await clientsLeft(server, 1);
  t.ok(errors.length > 0, 'some of it was noticed');
  t.same(
    errors.filter(({ code }) => code !== 'NBD_PROTOCOL'),
    [],
  );
  await requireHonestService(served);
});
