import { randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import { type Faults, ObjectStore } from '../../test/sim/objectStore.ts';
import { listBackups } from './backups.ts';
import { type AgedRepository, collect, unreadable } from './collectionFixture.ts';
import { damagedName } from './names.ts';
import { type DamagedRepository, damagedRepository, dataPacksOf, repair } from './repairFixture.ts';
import { copyChunks } from './repack.ts';
import { Repository } from './repository.ts';
import { backUp, initTestRepository, testChunkBytes, testSecret } from './repositoryFixture.ts';

/*
 * Repairs that die or are suspended at each of their calls in turn. What others do meanwhile is the worst that they
 * can do. To be quick they read no data; the damage is one that shows without.
 */

const stage = await damagedRepository();

void t.test('a repair that dies at any call is finished by the next one, and nothing is lost', async (t) => {
  let seen = '';
  for (let call = 1; ; call++) {
    const store = stage.store.copy();
    // One that dies before an effect leaves what one leaves that dies after the effect of the call before.
    const faults = { crashAtCall: call, crashAfterEffect: true };
    const outcome = await settled(async () => repair(await open(store, faults), { data: false }));
    const names = store.names().join(' ');
    if (names !== seen) {
      seen = names;
      const where = JSON.stringify(faults);
      // What was moved is in one of its two places, and nothing that could be read cannot be read.
      sameBytesSomewhere(t, store, where);
      await nothingIsLost(t, store, stage.kept, where);
      await repair(await open(store), { data: false });
      t.same((await repair(await open(store))).steps, [], `${where}: nothing is left to do`);
      sameBytesSomewhere(t, store, where);
      await collect(await open(store));
      await nothingIsLost(t, store, stage.kept, `${where}: after a collection`);
    }
    if (outcome === null) break;
  }
});

void t.test('a repair that sleeps for long before any call harms nothing when it wakes up', async (t) => {
  for (let call = 1; ; call++) {
    const store = stage.store.copy();
    const state = { slept: false };
    const meanwhile: { manifest: DamagedRepository['kept'][number]['manifest']; volume: Buffer }[] = [];
    const sleeper = await open(store, {
      suspend: async (next) => {
        if (next !== call) return;
        state.slept = true;
        // Another one repairs, backups share what was damaged, and two collections go over all of it.
        await repair(await open(store), { data: false });
        const [backup] = stage.kept;
        if (backup === undefined) throw new Error('no backup');
        const { manifest } = await backUp(await open(store), backup.volume);
        meanwhile.push({ manifest, volume: backup.volume });
        for (let round = 0; round < 2; round++) await collect(await open(store));
      },
    });
    await settled(async () => repair(sleeper, { data: false }));
    const where = `asleep before call ${call}`;
    const all = [...stage.kept, ...meanwhile];
    await nothingIsLost(t, store, all, where);
    for (let round = 0; round < 2; round++) await collect(await open(store));
    await nothingIsLost(t, store, all, `${where}, and collected`);
    if (!state.slept) break;
  }
});

void t.test('a collection that sleeps before any call while others repair harms nothing', async (t) => {
  const { store: before, backup, copies } = await duplicated();
  for (const damagedPack of copies)
    for (let call = 1; ; call++) {
      const store = before.copy();
      const state = { slept: false };
      const sleeper = await open(store, {
        suspend: async (next) => {
          if (next !== call) return;
          state.slept = true;
          // The collection may have found this pack whole, and be about to delete the other one.
          if (!store.objects.has(damagedPack)) return;
          store.truncate(damagedPack, 16);
          await repair(await open(store), { data: false });
        },
      });
      await settled(async () => collect(sleeper));
      const where = `${damagedPack} is damaged before call ${call}`;
      await nothingIsLost(t, store, [backup], where);
      await repair(await open(store), { data: false });
      for (let round = 0; round < 2; round++) await collect(await open(store));
      await nothingIsLost(t, store, [backup], `${where}, and collected`);
      if (!state.slept) break;
    }
});

/** A backup of which all data stands in two packs, as of two hosts that wrote the same at once. */
async function duplicated(): Promise<{
  readonly store: ObjectStore;
  readonly backup: AgedRepository['kept'][number];
  readonly copies: readonly string[];
}> {
  const store = new ObjectStore();
  const repository = await initTestRepository(store.client());
  const volume = randomBytes(testChunkBytes);
  const { manifest } = await backUp(repository, volume);
  repository.forgetIndex();
  const index = await repository.index();
  const places = [...index.places()].filter(({ entry }) => entry.domain.type === 'data');
  await copyChunks(repository.context, index, places, { packSizeBytes: testChunkBytes });
  return { store, backup: { manifest, volume }, copies: await dataPacksOf(repository) };
}

async function nothingIsLost(
  t: Test,
  store: ObjectStore,
  backups: AgedRepository['kept'],
  where: string,
): Promise<void> {
  t.same(await unreadable(store, backups), [], where);
  const listed = new Set((await listBackups((await open(store)).context)).map(({ id }) => id));
  t.same(
    backups.filter(({ manifest }) => !listed.has(manifest.id)),
    [],
    where,
  );
}

/** Whatever was found damaged is where it was, or under `damaged/`. */
function sameBytesSomewhere(t: Test, store: ObjectStore, where: string): void {
  for (const [name, bytes] of stage.damaged) {
    const place = store.objects.has(name) ? name : damagedName(name, 1);
    t.ok(store.objects.has(place) && store.bytesOf(place).equals(bytes), `${where}: ${name}`);
  }
}

async function open(store: ObjectStore, faults: Faults = {}): Promise<Repository> {
  return Repository.open(store.client(faults), testSecret);
}

async function settled(work: () => Promise<unknown>): Promise<unknown> {
  return work().then(
    () => null,
    (error: unknown) => error,
  );
}
