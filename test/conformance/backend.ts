import { randomBytes } from 'node:crypto';
import type { Test } from 'tap';
import { type Backend, listAll } from '../../storage/backends/backend.ts';

/** What every backend promises. @param make an empty store, and as many clients of it as are asked for */
export async function backendConformance(
  t: Test,
  make: (t: Test) => Promise<{ client(): Backend }>,
): Promise<void> {
  await t.test('what was created is read, whole and in ranges, by every client', async (t) => {
    const store = await make(t);
    const [a, b] = [store.client(), store.client()];
    const content = randomBytes(300_000);
    t.equal(await a.create('packs/ab/one', [content.subarray(0, 1000), content.subarray(1000)]), 'created');
    t.ok((await b.read('packs/ab/one'))?.equals(content));
    const range = { offsetBytes: 999, lengthBytes: 100_000 };
    t.ok((await b.read('packs/ab/one', { range }))?.equals(content.subarray(999, 100_999)));
    t.equal(await b.size('packs/ab/one'), 300_000);
    const end = { offsetBytes: 299_990, lengthBytes: 100 };
    t.equal((await b.read('packs/ab/one', { range: end }))?.length, 10, 'what there is of a range');
    const past = { offsetBytes: 400_000, lengthBytes: 100 };
    t.equal((await b.read('packs/ab/one', { range: past }))?.length, 0);
  });

  await t.test('a name is taken once: what is there stays as it is', async (t) => {
    const store = await make(t);
    const backend = store.client();
    t.equal(await backend.create('manifests/a', [Buffer.from('first')]), 'created');
    t.equal(await backend.create('manifests/a', [Buffer.from('second, longer')]), 'exists');
    t.equal(String(await backend.read('manifests/a')), 'first');
  });

  await t.test(
    'of many that create one name at once exactly one wins, and its content is there',
    async (t) => {
      const store = await make(t);
      for (let round = 0; round < 10; round++) {
        const contents = Array.from({ length: 8 }, () => randomBytes(20_000));
        const results = await Promise.all(
          contents.map(async (content) => store.client().create(`manifests/${round}`, [content])),
        );
        t.equal(results.filter((result) => result === 'created').length, 1);
        const winner = contents[results.indexOf('created')];
        t.ok(winner !== undefined && (await store.client().read(`manifests/${round}`))?.equals(winner));
      }
    },
  );

  await t.test('what is not there is null', async (t) => {
    const backend = (await make(t)).client();
    t.equal(await backend.read('config/00000001'), null);
    t.equal(await backend.read('config/x', { range: { offsetBytes: 0, lengthBytes: 1 } }), null);
    t.equal(await backend.size('config/00000001'), null);
    t.same(await listAll(backend, 'nothing/'), []);
  });

  await t.test('a listing has every object below its prefix, and its size, and nothing else', async (t) => {
    const backend = (await make(t)).client();
    for (const name of ['packs/aa/1', 'packs/ab/22', 'packs2/x', 'manifests/y'])
      await backend.create(name, [Buffer.from(name)]);
    const listed = await listAll(backend, 'packs/');
    t.same(
      listed.toSorted((one, other) => (one.name < other.name ? -1 : 1)),
      [
        { name: 'packs/aa/1', sizeBytes: 10 },
        { name: 'packs/ab/22', sizeBytes: 11 },
      ],
    );
  });

  await t.test('what was deleted is gone, its name is free, and deleting it again is fine', async (t) => {
    const backend = (await make(t)).client();
    await backend.create('sessions/a', [Buffer.from('x')]);
    await backend.delete('sessions/a');
    await backend.delete('sessions/a');
    await backend.delete('never/was');
    t.equal(await backend.read('sessions/a'), null);
    t.same(await listAll(backend, 'sessions/'), []);
    t.equal(await backend.create('sessions/a', [Buffer.from('y')]), 'created');
  });

  await t.test('names that lead elsewhere are refused', async (t) => {
    const backend = (await make(t)).client();
    for (const name of [
      '',
      '/etc',
      '../x',
      'a/../b',
      'a//b',
      'a/',
      '.x',
      'a/.x',
      'A',
      'a b',
      'é',
      'x'.repeat(300),
    ]) {
      await t.rejects(backend.create(name, [Buffer.from('x')]), { code: 'NAME_INVALID' }, name);
      await t.rejects(backend.read(name), { code: 'NAME_INVALID' }, name);
      await t.rejects(backend.delete(name), { code: 'NAME_INVALID' }, name);
    }
  });

  await t.test('a call whose signal is aborted rejects with its reason, and creates nothing', async (t) => {
    const backend = (await make(t)).client();
    const reason = new Error('enough');
    const signal = AbortSignal.abort(reason);
    await t.rejects(backend.create('a/b', [Buffer.from('x')], { signal }), reason);
    await t.rejects(backend.read('a/b', { signal }), reason);
    await t.rejects(listAll(backend, 'a/', { signal }), reason);
    t.equal(await backend.read('a/b'), null);
  });
}
