import { randomInt } from 'node:crypto';
import t, { type Test } from 'tap';
import { newId } from '../../common/ids.ts';
import { type Faults, type ObjectStore, randomFrom } from '../../test/sim/objectStore.ts';
import { Turns } from '../../test/sim/turns.ts';
import { deleteBackup, listBackups, readManifest } from './backups.ts';
import {
  type AgedRepository,
  agedRepository,
  collect,
  namedAndGone,
  remainsIn,
  unreadable,
} from './collectionFixture.ts';
import { readVerdict } from './collectionRecords.ts';
import { numberedName } from './names.ts';
import { Repository } from './repository.ts';
import { backUp, readVolume, testSecret, testTime } from './repositoryFixture.ts';

/*
 * Collections, writers and readers that die or are suspended at each of their calls in turn. What others do meanwhile
 * is the worst that they can do.
 */

const aged = await agedRepository();

void t.test(
  'a collection that dies at any call is taken up by the next one, and nothing is lost',
  async (t) => {
    const creates: number[] = [];
    let created = aged.store.created;
    // One that dies before an effect leaves what one leaves that dies after the effect of the call before.
    for (let call = 1; ; call++) {
      const { outcome, store } = await dies(t, { crashAtCall: call, crashAfterEffect: true });
      if (outcome === null) break;
      if (store.created > created) creates.push(call);
      created = store.created;
    }
    t.ok(creates.length >= 5, 'new packs, their index, mark, verdict, other indexes, sweep');
    for (const call of creates) await dies(t, { crashAtCall: call, torn: true });
  },
);

/** A collection dies, and others follow. Returns the store as it was left. */
async function dies(
  t: Test,
  faults: Faults,
): Promise<{ readonly outcome: unknown; readonly store: ObjectStore }> {
  const { store, kept } = again(aged);
  const outcome = await settled(async () => collect(await open(store, faults)));
  const left = store.copy();
  const where = JSON.stringify(faults);
  t.same(await unreadable(store, kept), [], where);
  t.same(await namedAndGone(store), [], `${where}: no index names what is gone`);
  if (faults.torn === true) await clearTorn(store);
  for (let round = 0; round < 2; round++) await collect(await open(store));
  t.same(await unreadable(store, kept), [], `${where}: after the next collection`);
  t.same(await remainsIn(store), [], where);
  return { outcome, store: left };
}

void t.test('a collector that sleeps for long before any call harms nothing when it wakes up', async (t) => {
  for (let call = 1; ; call++) {
    const { store, kept, goneVolumes } = again(aged);
    const meanwhile: Backups = [];
    const state = { slept: false };
    const sleeper = await open(store, {
      suspend: async (next) => {
        if (next !== call) return;
        state.slept = true;
        // Another host ends this collection, what was deleted comes back, other things go, and more is collected.
        await collect(await open(store));
        for (const volume of goneVolumes) meanwhile.push(await write(store, volume));
        await remove(store, kept[0]);
        await collect(await open(store));
        meanwhile.push(await write(store, kept[0]?.volume ?? Buffer.alloc(0)));
      },
    });
    await settled(async () => collect(sleeper));
    const all = [...kept.slice(1), ...meanwhile];
    t.same(await unreadable(store, all), [], `asleep before call ${call}`);
    await collect(await open(store));
    await collect(await open(store));
    t.same(await unreadable(store, all), [], `asleep before call ${call}, and collected`);
    t.same(await remainsIn(store), [], `asleep before call ${call}`);
    if (!state.slept) break;
  }
});

void t.test(
  'a writer that sleeps for long before any call commits what can be restored, or nothing',
  async (t) => {
    const outcomes = new Map<string, number>();
    for (const sessions of ['fence', 'leave'] as const) {
      for (let call = 1; ; call++) {
        const { store, kept, goneVolumes } = again(aged);
        const volume = Buffer.concat([goneVolumes[0] ?? Buffer.alloc(0), kept[0]?.volume ?? Buffer.alloc(0)]);
        const state = { slept: false };
        const meanwhile: Backups = [];
        const sleeper = await open(store, {
          suspend: async (next) => {
            if (next !== call) return;
            state.slept = true;
            await remove(store, kept[0]);
            const options = { onOpenSession: () => Promise.resolve(sessions) };
            for (let round = 0; round < 2; round++) {
              await collect(await open(store), options);
              meanwhile.push(await write(store, goneVolumes[round] ?? Buffer.alloc(0)));
            }
          },
        });
        const id = newId();
        const failure = await settled(async () => backUp(sleeper, volume, { id }));
        const listed = (await listBackups((await open(store)).context)).find((backup) => backup.id === id);
        const where = `${sessions}, asleep before call ${call}`;
        const manifest = listed?.manifest;
        if (manifest != null) t.ok((await readVolume(await open(store), manifest)).equals(volume), where);
        if (failure !== null) t.match(failure, { code: 'BACKUP_FENCED' }, where);
        t.equal(failure === null, manifest != null, `${where}: acknowledged if it is there`);
        const outcome = `${sessions} ${failure === null ? 'committed' : 'fenced'}`;
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
        for (let round = 0; round < 2; round++) await collect(await open(store));
        t.same(await unreadable(store, [...kept.slice(1), ...meanwhile]), [], where);
        if (manifest != null) t.ok((await readVolume(await open(store), manifest)).equals(volume), where);
        t.same(await remainsIn(store), [], where);
        if (!state.slept) break;
      }
    }
    t.comment(JSON.stringify([...outcomes]));
    t.notOk(outcomes.has('leave fenced'), 'a writer that is waited for is never harmed');
  },
);

void t.test('a reader that sleeps for long before any call reads what it began to read', async (t) => {
  for (let call = 1; ; call++) {
    const { store, kept } = again(aged);
    const [backup] = kept;
    if (backup === undefined) throw new Error('no backup');
    const state = { slept: false };
    const sleeper = await open(store, {
      suspend: async (next) => {
        if (next !== call) return;
        state.slept = true;
        for (let round = 0; round < 2; round++) await collect(await open(store), { repackBelow: 1.1 });
      },
    });
    t.ok((await readVolume(sleeper, backup.manifest)).equals(backup.volume), `asleep before call ${call}`);
    if (!state.slept) break;
  }
});

void t.test('a writer and collectors that meet at any calls harm each other in no way', async (t) => {
  const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
  const rounds = Number(process.env['STILLPOINT_TEST_ROUNDS'] ?? 60);
  t.comment(`seed ${seed}, ${rounds} meetings; STILLPOINT_TEST_SEED repeats them`);
  const outcomes = { committed: 0, fenced: 0 };
  for (let round = 0; round < rounds; round++) {
    const { store, kept, goneVolumes } = again(aged);
    const random = randomFrom(seed + round);
    const turns = new Turns(random, { suspended: 0, suspensionTurns: 0, stretchTurns: 150 });
    store.turns = turns;
    const volume = goneVolumes[round % 2] ?? Buffer.alloc(0);
    const id = newId();
    const commit = async () => settled(async () => backUp(await open(store), volume, { id }));
    const collectOnce = async () => {
      const onOpenSession = async ({ backupId }: { readonly backupId: string }) => {
        await turns.take({});
        return backupId === id && random() < 0.95 ? 'wait' : 'fence';
      };
      await collect(await open(store), { onOpenSession });
    };
    const written = commit();
    await turns.run([written, ...Array.from({ length: 1 + (round % 2) }, collectOnce)]);
    store.turns = null;
    const where = `seed ${seed + round}`;
    const failure = await written;
    if (failure !== null) t.match(failure, { code: 'BACKUP_FENCED' }, where);
    outcomes[failure === null ? 'committed' : 'fenced']++;
    for (const when of ['', ' after another collection']) {
      const listed = await listBackups((await open(store)).context);
      const manifest = listed.find((backup) => backup.id === id)?.manifest ?? null;
      t.equal(manifest !== null, failure === null, `${where}: acknowledged if it is there${when}`);
      const all = manifest === null ? kept : [...kept, { manifest, volume }];
      t.same(await unreadable(store, all), [], `${where}${when}`);
      for (let once = 0; once < 2; once++)
        t.equal(await settled(async () => collect(await open(store))), null);
    }
    t.same(await remainsIn(store), [], where);
  }
  t.comment(JSON.stringify(outcomes));
});

void t.test('a collection from any call of a writer to any call of its own harms nobody', async (t) => {
  const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
  const rounds = Number(process.env['STILLPOINT_TEST_ROUNDS'] ?? 250);
  t.comment(`seed ${seed}, ${rounds} pairs of calls; STILLPOINT_TEST_SEED repeats them`);
  const random = randomFrom(seed);
  for (let round = 0; round < rounds; round++) {
    const { store, kept, goneVolumes } = again(aged);
    const calls = { writer: 1 + Math.floor(random() * 40), collector: 1 + Math.floor(random() * 120) };
    const where = `seed ${seed}, round ${round}, ${JSON.stringify(calls)}`;
    const id = newId();
    const volume = goneVolumes[round % 2] ?? Buffer.alloc(0);
    const reached = Promise.withResolvers<void>();
    const written = Promise.withResolvers<void>();
    const standStill = async () => {
      reached.resolve();
      await written.promise;
    };
    const collection = async () => {
      const suspend = async (call: number) => (call === calls.collector ? standStill() : undefined);
      const failure = await settled(async () =>
        collect(await open(store, { suspend }), {
          onOpenSession: async ({ backupId }) => {
            if (backupId === id) await standStill();
            return backupId === id ? 'wait' : 'fence';
          },
        }),
      );
      reached.resolve();
      return failure;
    };
    const started: Promise<unknown>[] = [];
    const suspend = async (call: number) => {
      if (call !== calls.writer) return;
      started.push(collection());
      await reached.promise;
    };
    t.equal(await settled(async () => backUp(await open(store, { suspend }), volume, { id })), null, where);
    written.resolve();
    for (const failure of await Promise.all(started)) t.equal(failure, null, where);
    const manifest = await readManifest((await open(store)).context, id);
    if (manifest === null) t.fail(`${where}: it is not there`);
    else t.same(await unreadable(store, [...kept, { manifest, volume }]), [], where);
  }
});

/** The same repository once more. */
function again(repository: AgedRepository): AgedRepository {
  return { ...repository, store: repository.store.copy() };
}

type Backups = AgedRepository['kept'][number][];

async function open(store: ObjectStore, faults: Faults = {}): Promise<Repository> {
  return Repository.open(store.client(faults), testSecret);
}

async function write(store: ObjectStore, volume: Buffer): Promise<AgedRepository['kept'][number]> {
  return { manifest: (await backUp(await open(store), volume)).manifest, volume };
}

async function remove(store: ObjectStore, backup: AgedRepository['kept'][number] | undefined): Promise<void> {
  if (backup !== undefined) await deleteBackup((await open(store)).context, backup.manifest.id, testTime);
}

/** What an operation failed with, or `null`. */
async function settled(operation: () => Promise<unknown>): Promise<unknown> {
  return operation().then(
    () => null,
    (error: unknown) => error,
  );
}

/** What no store may do holds a collection up, and an operator must help. */
async function clearTorn(store: ObjectStore): Promise<void> {
  const { context } = await open(store);
  for (const { id, problem } of await listBackups(context))
    if (problem !== null) await deleteBackup(context, id, testTime);
  if ((await settled(async () => readVerdict(context, 1))) !== null)
    store.objects.delete(numberedName('verdicts', 1));
}
