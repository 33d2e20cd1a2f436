import type { Test } from 'tap';
import type { Backend } from '../../storage/backends/backend.ts';
import type { DisplacedObject, ObjectLock } from '../../storage/backends/objectLock.ts';

/** A store that locks objects, and somebody else who has all rights to it and knows nothing of us. */
export interface LockingStore {
  readonly backend: Backend;
  readonly intruder: Intruder;
}

export interface Intruder {
  /** As anybody does: without naming a version. */
  delete(name: string): Promise<void>;
  /** Every version. Resolves with how many were refused. */
  purge(name: string): Promise<number>;
  overwrite(name: string, content: string): Promise<void>;
}

const hourMs = 3_600_000;
const inOneHour = (): Date => new Date(Math.ceil((Date.now() + hourMs) / 1000) * 1000);

/** What every backend with an object lock promises. @param make an empty store */
export async function objectLockConformance(
  t: Test,
  make: (t: Test) => Promise<LockingStore>,
): Promise<void> {
  const put = async ({ backend }: LockingStore, name: string, retainUntil?: Date): Promise<ObjectLock> => {
    const result = await backend.create(name, [Buffer.from(`content of ${name}`)], { retainUntil });
    t.equal(result, 'created');
    if (backend.objectLock === null) throw new Error('the backend has no object lock');
    return backend.objectLock;
  };
  const isWhole = async ({ backend }: LockingStore, name: string): Promise<boolean> =>
    String(await backend.read(name)) === `content of ${name}`;

  await t.test('that it is enforced is found out by trying, again and again', async (t) => {
    const { backend } = await make(t);
    t.equal(await backend.objectLock?.isEnforced(), true);
    t.equal(await backend.objectLock?.isEnforced(), true);
  });

  await t.test('what is created under retention is so from its first moment on', async (t) => {
    const store = await make(t);
    const until = inOneHour();
    const lock = await put(store, 'packs/a', until);
    t.same(await lock.status('packs/a'), { sizeBytes: 18, retainedUntil: until });
    await put(store, 'sessions/a');
    t.same(await lock.status('sessions/a'), { sizeBytes: 21, retainedUntil: null });
    t.equal(await lock.status('packs/none'), null);
  });

  await t.test('what is under retention cannot be deleted, by us or by anybody', async (t) => {
    const store = await make(t);
    const until = inOneHour();
    const lock = await put(store, 'packs/a', until);
    await t.rejects(lock.remove('packs/a'), { code: 'OBJECT_LOCKED', message: until.toISOString() });
    t.ok(await isWhole(store, 'packs/a'), 'and it is not hidden, either');
    t.equal(await store.intruder.purge('packs/a'), 1);
    t.ok(await isWhole(store, 'packs/a'));
  });

  await t.test('a retention is made longer, and never shorter', async (t) => {
    const store = await make(t);
    const until = inOneHour();
    const later = new Date(until.getTime() + hourMs);
    const lock = await put(store, 'packs/a');
    for (const [asked, expected] of [
      [until, until],
      [later, later],
      [until, later],
    ] as const) {
      await lock.retain('packs/a', asked);
      t.same((await lock.status('packs/a'))?.retainedUntil, expected);
    }
    await t.rejects(lock.retain('packs/none', until), { code: 'FILE_MISSING' });
  });

  await t.test('what is not under retention is deleted with all its versions', async (t) => {
    const store = await make(t);
    const lock = await put(store, 'sessions/a');
    await put(store, 'sessions/a.2');
    await store.intruder.overwrite('sessions/a', 'other');
    await lock.remove('sessions/a');
    await lock.remove('sessions/a');
    t.equal(await store.backend.read('sessions/a'), null);
    t.equal(await store.intruder.purge('sessions/a'), 0);
    t.ok(await isWhole(store, 'sessions/a.2'), 'and nothing whose name only begins so');
    await put(store, 'sessions/a');
  });

  await t.test('what was deleted or overwritten under retention is found, and brought back', async (t) => {
    const store = await make(t);
    const until = inOneHour();
    const names = ['packs/deleted', 'packs/overwritten', 'packs/both', 'packs/whole'];
    for (const name of names) await put(store, name, until);
    const lock = await put(store, 'packs/free');
    const { intruder } = store;
    await intruder.delete('packs/deleted');
    await intruder.overwrite('packs/overwritten', 'rubbish');
    await intruder.overwrite('packs/both', 'rubbish');
    await intruder.delete('packs/both');
    await intruder.delete('packs/free');
    const found = await displacedIn(lock);
    t.same(
      found.map(({ name, how, retainedUntil }) => [name, how, retainedUntil]),
      [
        ['packs/both', 'deleted', until],
        ['packs/deleted', 'deleted', until],
        ['packs/overwritten', 'overwritten', until],
      ],
    );
    for (const object of [...found, ...found]) await lock.bringBack(object);
    for (const name of names) t.ok(await isWhole(store, name), name);
    t.same(await displacedIn(lock), []);
    for (const { name } of found) await t.rejects(lock.remove(name), { code: 'OBJECT_LOCKED' }, name);
  });

  await t.test('an object is hidden from readers though nobody can delete it', async (t) => {
    const store = await make(t);
    const lock = await put(store, 'deletions/a', inOneHour());
    await lock.hide('deletions/a');
    t.equal(await store.backend.read('deletions/a'), null);
    t.equal(await store.backend.size('deletions/a'), null);
    t.equal(await store.backend.create('deletions/a', [Buffer.from('x')]), 'created', 'its name is free');
  });
}

async function displacedIn(lock: ObjectLock): Promise<readonly DisplacedObject[]> {
  const found: DisplacedObject[] = [];
  for await (const object of lock.displaced('packs/')) found.push(object);
  return found.toSorted((one, other) => (one.name < other.name ? -1 : 1));
}
