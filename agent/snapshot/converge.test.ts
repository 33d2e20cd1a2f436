import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { type ConvergeOptions, watchConvergence } from './converge.ts';

/** A snapshot whose memory file is this large and never becomes complete; tells what was done about it. */
async function watched(
  test: Test,
  options: Partial<ConvergeOptions>,
  sizeBytes: number,
  endAfter: (done: readonly string[]) => boolean,
  endMs = 10_000,
): Promise<readonly string[]> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-converge-'));
  test.teardown(() => rm(directory, { recursive: true }));
  const stateFile = join(directory, 'state');
  await writeFile(stateFile, '');
  await truncate(stateFile, sizeBytes);
  const done: string[] = [];
  const ended = new AbortController();
  const timer = setTimeout(() => ended.abort(), endMs);
  test.teardown(() => clearTimeout(timer));
  const note = async (what: string): Promise<void> => {
    done.push(what);
    if (endAfter(done)) ended.abort();
  };
  const hypervisor = {
    job: async () => ({ kind: 'unbounded', processedBytes: 1, totalBytes: 2 }) as const,
    setMaxDowntime: (_uuid: string, downtimeMs: number) => note(`allow ${downtimeMs}`),
    suspend: () => note('suspend'),
  };
  const plan = { machine: { uuid: 'u', name: 'm' }, stateFile, memoryBytes: 2000, convergeBytes: 1000 };
  const limits = { convergeMs: 60_000, whenNotConverging: 'pause-longer', longestPauseMs: 400 } as const;
  const all = { ...limits, onHeld: () => void done.push('held'), ...options };
  await watchConvergence(hypervisor, plan, all, ended.signal);
  return done;
}

void t.test('memory that converges is left alone', async (t) => {
  t.same(await watched(t, {}, 500, () => false, 700), []);
});

void t.test(
  'a longer pause is allowed first, then the vCPUs are stopped, and the limit is put back',
  async (t) => {
    const done = await watched(t, {}, 1500, (so) => so.includes('suspend'));
    t.same(done, ['allow 400', 'held', 'suspend', 'allow 300']);
  },
);

void t.test('it is given up where the policy says so, in time and in size', async (t) => {
  const code = 'MEMORY_NOT_CONVERGING';
  for (const whenNotConverging of ['disk', 'fail'] as const) {
    await t.rejects(
      watched(t, { whenNotConverging }, 1500, () => false),
      { code },
    );
    await t.rejects(
      watched(t, { whenNotConverging, convergeMs: 1 }, 500, () => false),
      { code },
    );
  }
  await t.rejects(
    watched(t, {}, 2500, () => false),
    { code },
    'whatever the policy says, no file eats the host',
  );
});
