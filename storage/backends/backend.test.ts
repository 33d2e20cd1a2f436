import { randomInt } from 'node:crypto';
import t, { type Test } from 'tap';
import { backendConformance } from '../../test/conformance/backend.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { WeakS3, type WeakS3Options } from '../../test/sim/weakS3.ts';
import { Bandwidth, BandwidthLimit } from '../../common/bandwidth.ts';
import type { Backend } from './backend.ts';
import { BandwidthBackend } from './bandwidthBackend.ts';
import { FileBackend } from './fileBackend.ts';
import { openTestBackend } from './s3Fixture.ts';

void t.test('files', async (t) => {
  await backendConformance(t, async (st) => {
    const root = `${st.testdir()}/store`;
    await new FileBackend(root).prepare();
    return { client: () => new FileBackend(root) };
  });
});

void t.test('files within a bandwidth', async (t) => {
  await backendConformance(t, async (st) => {
    const root = `${st.testdir()}/store`;
    await new FileBackend(root).prepare();
    const bandwidth = new Bandwidth(new BandwidthLimit(2 ** 30));
    return { client: () => new BandwidthBackend(new FileBackend(root), bandwidth) };
  });
});

void t.test('what is read counts as what is sent', async (t) => {
  await using server = await WeakS3.start();
  const bandwidth = new Bandwidth(new BandwidthLimit(1000));
  const backend = new BandwidthBackend(await openTestBackend(server), bandwidth);
  const startedMs = performance.now();
  await backend.create('packs/a', [Buffer.alloc(200)]);
  await backend.read('packs/a');
  await backend.read('packs/a', { range: { offsetBytes: 0, lengthBytes: 1 } });
  t.ok(performance.now() - startedMs >= 390, 'both lengths are paid for');
});

void t.test('the simulated store', async (t) => {
  await backendConformance(t, async () => {
    const store = new ObjectStore();
    return { client: () => store.client() };
  });
});

void t.test('S3', async (t) => {
  await backendConformance(t, async (st) => weakStore(st, {}));
});

void t.test('S3 with a tenth of all requests failing somehow', async (t) => {
  const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
  t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats its faults`);
  const rates = {
    cutBefore: 0.02,
    cutAfter: 0.02,
    unavailable: 0.02,
    failedAfter: 0.02,
    conflict: 0.01,
    cutBody: 0.02,
    shortBody: 0.02,
    brokenXml: 0.02,
  };
  await backendConformance(t, async (st) => weakStore(st, { rates, seed }));
});

async function weakStore(t: Test, options: WeakS3Options): Promise<{ client(): Backend }> {
  const server = await WeakS3.start(options);
  t.teardown(async () => server.stop());
  const backends = await Promise.all(Array.from({ length: 4 }, async () => openTestBackend(server)));
  const inTurn = (function* (): Generator<Backend, never> {
    for (;;) yield* backends;
  })();
  return { client: () => inTurn.next().value };
}
