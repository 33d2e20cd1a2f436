import { randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import { dueForReading } from '../agent/verifyOrder.ts';
import { placeFor, store } from '../storage/repositoryStorage/fixture.ts';
import type { BackupEntry, Storage, VerifyOptions, VerifyReport } from '../storage/storage.ts';
import type { Cli } from './cli.ts';
import { RecordedTerminal } from './fixture.ts';
import { Options } from './options.ts';
import { roundOf, tellLeft, verifyCopies } from './verifyRound.ts';

const now = new Date('2036-01-01T00:00:00.000Z');

interface Stage {
  readonly storage: Storage;
  readonly cli: Cli;
  readonly recorded: RecordedTerminal;
  /** A run whose time is over while its copy of this number is read; without one it has all the time. */
  readonly run: (overAt?: number) => Promise<readonly string[]>;
}

/** Three backups, and runs over them. */
async function stageFor(test: Test, json = false): Promise<Stage> {
  const place = await placeFor(test);
  const { storage } = place;
  const recorded = new RecordedTerminal({ json });
  const cli: Cli = {
    terminal: recorded.terminal,
    configPath: '/etc/c.yaml',
    configIsNamed: false,
    verbose: false,
  };
  for (const day of ['01', '02', '03'])
    await store(place, randomBytes(70_000), { time: `2026-11-${day}T00:00:00.000Z` });
  const run = async (overAt?: number): Promise<readonly string[]> => {
    const controller = new AbortController();
    const begun: string[] = [];
    const verify = storage.verify.bind(storage);
    const watched: Storage = Object.assign(Object.create(storage), {
      verify: (entry: BackupEntry, options: VerifyOptions): Promise<VerifyReport> => {
        begun.push(entry.pointInTime.slice(0, 10));
        if (begun.length === overAt) controller.abort();
        return verify(entry, options);
      },
      addDataVerification: storage.addDataVerification.bind(storage),
    });
    const entries = dueForReading(await storage.list(), { now, olderThanMs: 0 });
    const options = { data: true, signal: controller.signal };
    tellLeft(
      cli,
      await verifyCopies(cli, { storage: () => watched }, entries, options, (_, error) => {
        throw error;
      }),
    );
    return begun;
  };
  return { storage, cli, recorded, run };
}

void t.test('a run that ends in the middle is gone on with by the next one', async (t) => {
  const { storage, recorded, run } = await stageFor(t);
  t.same(await run(2), ['2026-11-01', '2026-11-02']);
  t.match(recorded.stderr, /over while .*2026-11-02.* was read; the next run begins with it/);
  t.match(recorded.stderr, /1 were read; 2 are left, 2 of them never read/);
  const read = (await storage.list()).filter(({ dataVerified }) => dataVerified !== null);
  t.same(
    read.map(({ pointInTime }) => pointInTime.slice(0, 10)),
    ['2026-11-01'],
    'what was begun only counts as not read',
  );
  t.same(await run(), ['2026-11-02', '2026-11-03', '2026-11-01']);
  t.match(recorded.stderr, /3 were read; nothing is left/);
});

void t.test('who gives too little time for one backup is told', async (t) => {
  const { recorded, run } = await stageFor(t);
  t.same(await run(1), ['2026-11-01']);
  t.match(recorded.stderr, /needs a larger --budget/);
});

void t.test('a program is told what is left', async (t) => {
  const { recorded, run } = await stageFor(t, true);
  await run(2);
  const last: unknown = JSON.parse(recorded.stdout.trim().split('\n').at(-1) ?? '');
  t.match(last, { verified: 1, left: 2, neverRead: 2, oldestReadAt: null, interrupted: /2026-11-02/ });
});

void t.test('a budget without --all --data is refused', (t) => {
  t.throws(() => roundOf(new Options({ budget: '2h' }), false), { code: 'USAGE' });
  t.throws(() => roundOf(new Options({ budget: '2 hours' }), true), { code: 'USAGE' });
  t.throws(() => roundOf(new Options({ budget: '30d' }), true), { code: 'USAGE' }, 'no timer takes as long');
  t.equal(roundOf(new Options({}), true), null);
  t.match(roundOf(new Options({ olderThan: '30d' }), true), { olderThanMs: 2_592_000_000 });
  t.end();
});
