import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import t from 'tap';

import { CertificateAuthority } from '../../controller/ca.ts';
import { ReportStore } from '../../controller/reportStore.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { Immortal } from '../../test/sim/immortal.ts';
import { randomFrom } from '../../test/sim/objectStore.ts';
import { disagreement, receivedIn } from '../../test/sim/reports.ts';
import { enrolHost } from '../../test/tls/authority.ts';
import { UnrulyLink } from '../../test/sim/unrulyLink.ts';
import { IdentityStore } from '../identity/identityStore.ts';
import { Outbox } from './outbox.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
const count = Number(process.env['STILLPOINT_TEST_REPORTS'] ?? 800);
const root = resolve(import.meta.dirname, '../..');
const maxBytes = 64 * 1024 * 1024;
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);

const hostProgram = join(root, 'test/sim/reportingHost.ts');

function stubCommand(directory: string): readonly string[] {
  return [join(root, 'cli/main.ts'), 'controller', '--stub', '--dir', join(directory, 'controller')];
}

async function freePort(command: readonly string[]): Promise<number> {
  const receiver = new Immortal([...command, '--listen', '127.0.0.1:0']);
  receiver.start();
  const port = await receiver.listeningPort();
  await receiver.kill('SIGTERM');
  return port;
}

void t.test('the command receives reports, prints them as JSON lines, and ends with a signal', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-reports-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const receiver = new Immortal([...stubCommand(directory), '--listen', '127.0.0.1:0', '--json']);
  receiver.start();
  t.teardown(() => receiver.kill());
  const address = `127.0.0.1:${await receiver.listeningPort()}`;
  const host = new Immortal([hostProgram, directory, address, '20', String(maxBytes)]);
  host.start();
  t.teardown(() => host.kill());
  await eventually(() => host.said.includes('done'), { timeoutMs: 60_000 });
  t.equal(await receiver.kill('SIGTERM'), true);
  t.equal(receiver.exitCode, 0);
  t.match(receiver.said, /for tests only/);
  const lines = receiver.said
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line): unknown => JSON.parse(line));
  t.equal(lines.length, 60);
  t.match(lines[59], { arrival: 60, sequence: 60, kind: 'alert', body: { key: '20', raised: true } });
});

/** A host that has joined, in `identity` of a directory, the controller that is beside it. */
async function joinController(directory: string): Promise<void> {
  using ca = await CertificateAuthority.open(join(directory, 'controller'));
  await new IdentityStore(join(directory, 'identity')).adopt(enrolHost(ca), 0);
}

const ways = [
  {
    name: 'without certificates',
    options: [],
    unruliness: { bytesMax: 120_000, delayMsMax: 30, lingerMsMax: 400, replaysOneOf: 3 },
  },
  {
    // What is replayed there is another handshake, which fails: nobody gets in with what was heard.
    name: 'by TLS with certificates',
    options: ['--tls'],
    unruliness: {
      bytesMax: 60_000,
      delayMsMax: 60,
      lingerMsMax: 400,
      replaysOneOf: 6,
      bytesPerSecondMin: 40_000,
    },
  },
] as const;

for (const { name, options, unruliness } of ways)
  void t.test(
    `${name}: host and receiver are killed, and the way between them is unruly: all arrives once`,
    async (t) => {
      const directory = await mkdtemp(join(tmpdir(), 'stillpoint-reports-'));
      t.teardown(() => rm(directory, { recursive: true }));
      const isTls = options.length > 0;
      if (isTls) await joinController(directory);
      const stub = [...stubCommand(directory), ...options];
      const port = await freePort(stub);
      await using link = await UnrulyLink.start(port, { seed, ...unruliness });
      const receiver = new Immortal([...stub, '--listen', `127.0.0.1:${port}`, '--json']);
      const about = [directory, link.address, String(count), String(maxBytes)];
      const host = new Immortal([hostProgram, ...about, ...(isTls ? ['tls'] : [])]);
      t.teardown(async () => {
        await receiver.kill();
        await host.kill();
      });
      receiver.start();
      host.start();
      const random = randomFrom(seed);
      // Moments of both processes, not of the clock: each lives long enough to get somewhere.
      for (let kill = 0; kill < 12 && !host.said.includes('done'); kill++) {
        await sleep(300 + random() * 1_500);
        if (random() < 0.3) link.cutAll();
        const victim = random() < 0.5 ? host : receiver;
        if (await victim.kill()) victim.start();
      }
      await eventually(() => host.said.includes('done'), { timeoutMs: 120_000 });
      t.ok(await receiver.kill('SIGTERM'));
      t.comment(`${host.kills} and ${receiver.kills} kills, ${JSON.stringify(link.counts)}`);
      using store = new ReportStore(join(directory, 'controller', 'reports.sqlite'));
      using outbox = new Outbox(join(directory, 'outbox.sqlite'), { maxBytes });
      const received = receivedIn(store);
      t.same(store.gaps(), []);
      t.equal(disagreement(received, outbox.state.lastSequence), undefined, `seed ${seed}`);
      t.same(
        received.alerts,
        Array.from({ length: count }, (_, at) => String(at + 1)),
        `seed ${seed}: what lasts has arrived once, in its order`,
      );
    },
  );
