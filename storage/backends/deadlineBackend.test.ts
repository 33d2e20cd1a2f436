import t from 'tap';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { type Backend, listAll } from './backend.ts';
import { DeadlineBackend } from './deadlineBackend.ts';

/** A server that is gone: no call ever ends. */
function hanging(): Backend {
  const never = <T>(): Promise<T> => Promise.withResolvers<T>().promise;
  return {
    objectLock: null,
    location: '/mnt/gone',
    create: never,
    createsExclusively: never,
    read: never,
    size: never,
    list: () => ({ [Symbol.asyncIterator]: () => ({ next: never }) }),
    delete: never,
  };
}

void t.test('no call of a backend that hangs keeps its caller waiting', async (t) => {
  const backend = new DeadlineBackend('vault', hanging(), 50);
  const calls: Record<string, () => Promise<unknown>> = {
    create: () => backend.create('a', []),
    createsExclusively: () => backend.createsExclusively(),
    read: () => backend.read('a'),
    size: () => backend.size('a'),
    list: () => listAll(backend, 'a/'),
    delete: () => backend.delete('a'),
  };
  for (const [name, call] of Object.entries(calls))
    await t.rejects(call(), { code: 'STORAGE_UNREACHABLE', message: /storage vault/, hint: /gone/ }, name);
});

void t.test('of one that answers it changes nothing', async (t) => {
  const backend = new DeadlineBackend('vault', new ObjectStore().client(), 10_000);
  t.equal(await backend.create('a/b', [Buffer.from('x')]), 'created');
  t.equal(await backend.create('a/b', [Buffer.from('y')]), 'exists');
  t.equal(String(await backend.read('a/b')), 'x');
  t.equal(await backend.size('a/c'), null);
  t.same(await listAll(backend, 'a/'), [{ name: 'a/b', sizeBytes: 1 }]);
  await backend.delete('a/b');
  t.same(await listAll(backend, 'a/'), []);
});
