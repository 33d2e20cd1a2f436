import { randomInt } from 'node:crypto';
import { Client, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import t from 'tap';
import {
  AgentService,
  type GetHostResponse,
  SetPoliciesRequest,
  StartBackupRequest,
  StartRestoreRequest,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { answerOf, ServedSite, startRequest } from '../../test/sim/servedSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';

/* Messages that no honest client sends. STILLPOINT_FUZZ_SEED is one run again, STILLPOINT_FUZZ_CALLS a longer one. */

t.teardown(removeSharedImages);

const seed = Number(process.env['STILLPOINT_FUZZ_SEED'] ?? randomInt(2 ** 31));
const calls = Number(process.env['STILLPOINT_FUZZ_CALLS'] ?? 400);

/** mulberry32 */
function generator(from: number): (below: number) => number {
  let state = from;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const paths = Object.values(AgentService).map(({ path, responseStream }) => ({ path, responseStream }));
const seeds = [
  startRequest(),
  startRequest({
    machines: ['m', 'nobody', '\u202e', '-rf'],
    labels: { __proto__: 'x', a: '' },
    reread: true,
  }),
].map((request) => StartBackupRequest.encode(request).finish());
seeds.push(
  SetPoliciesRequest.encode({
    revision: 1n,
    document: '{"policies":{"a":{"mode":"disk"}},"machines":[{"match":"*","policy":"a"}]}',
    validateOnly: false,
  }).finish(),
  StartRestoreRequest.encode({
    idempotencyKey: 'key-2',
    restore: {
      backup: 'm@latest',
      storage: '',
      target: { $case: 'files', value: { directory: '/nowhere/at/all' } },
      start: 0,
      volumes: ['vda'],
      instant: false,
      networks: { __proto__: 'x', br0: 'br1' },
    },
    acceptedConflicts: ['path'],
  }).finish(),
);

/** Bytes of a message: random ones, or a request with some of its bytes changed, doubled or left out. */
function messageOf(random: (below: number) => number): Buffer {
  if (random(3) === 0) return Buffer.from(Array.from({ length: random(300) }, () => random(256)));
  const bytes = [...(seeds[random(seeds.length)] ?? [])];
  for (let changes = random(6); changes > 0; changes -= 1) {
    const at = random(bytes.length + 1);
    const what = random(3);
    if (what === 0) bytes[at] = random(256);
    else if (what === 1) bytes.splice(at, random(4));
    else bytes.splice(at, 0, ...bytes.slice(at, at + random(40)));
  }
  return Buffer.from(bytes);
}

void t.test(`no message brings the service down, and each call has an end (seed ${seed})`, async (t) => {
  await using served = await ServedSite.create();
  const client = new Client(`unix:${served.socket}`, credentials.createInsecure());
  const random = generator(seed);
  const raw = (bytes: Buffer): Buffer => bytes;
  const ends = new Map<string, number>();
  for (let call = 0; call < calls; call += 1) {
    const { path, responseStream } = paths[random(paths.length)] ?? { path: '', responseStream: false };
    const message = messageOf(random);
    const deadline = Date.now() + 20_000;
    const end = await endOf((done) => {
      if (!responseStream) {
        client.makeUnaryRequest(path, raw, raw, message, new Metadata(), { deadline }, done);
        return;
      }
      const stream = client.makeServerStreamRequest(path, raw, raw, message, new Metadata(), { deadline });
      // A stream of events has no end: one that has begun is enough.
      stream.once('data', () => stream.cancel());
      stream.once('error', done);
      stream.once('end', () => done(null));
    });
    ends.set(end, (ends.get(end) ?? 0) + 1);
    t.not(end, status[status.DEADLINE_EXCEEDED], `${path} ${message.toString('hex')}`);
    t.not(end, status[status.UNAVAILABLE], `${path} ${message.toString('hex')}`);
  }
  t.comment(Object.fromEntries(ends));
  client.close();
  const answer = await answerOf<GetHostResponse>((done) => served.client().getHost({ view: 0 }, done));
  t.equal(answer.host?.apiLevel, 1, 'it still answers');
  t.notMatch(served.said.join(''), /unforeseen/, 'and nothing that was sent was unforeseen');
});

/** How a call has ended: the name of its status. */
async function endOf(begin: (done: (error: ServiceError | null) => void) => void): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  begin((error) => resolve(error === null ? 'OK' : (status[error.code] ?? 'none')));
  return promise;
}
