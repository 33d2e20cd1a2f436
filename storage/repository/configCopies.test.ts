import t from 'tap';
import { repair } from './repairFixture.ts';
import { Repository } from './repository.ts';
import { initTestRepository, testSecret, testStage, testTime } from './repositoryFixture.ts';

const [first, second, third] = ['config/00000001', 'config/00000001.2', 'config/00000001.3'] as const;

void t.test('a configuration in which any bit has turned is read from its copy', async (t) => {
  const { store } = await testStage();
  const bits = store.bytesOf(first).length * 8;
  // Every seventh: each place within a byte comes, and each byte nearly.
  for (const name of [first, second])
    for (let bit = 0; bit < bits; bit += 7) {
      const other = store.copy();
      other.damage(name, bit);
      const { config } = await Repository.open(other.client(), testSecret);
      if (config.createdAt !== testTime) t.fail(`bit ${bit} of ${name}`);
    }
});

void t.test(
  'a configuration that is gone is read from its copy, and no repository is made over it',
  async (t) => {
    const { store, repository } = await testStage();
    store.objects.delete(first);
    await Repository.open(store.client(), testSecret);
    await repository.requireThere();
    await t.rejects(initTestRepository(store.client()), { code: 'REPOSITORY_EXISTS' });
  },
);

void t.test('a feature that is required is respected, whichever copy asks for it', async (t) => {
  const { store } = await testStage();
  const asking = Buffer.from(
    store.bytesOf(first).toString('latin1').replace('"requires":[]', '"requires":["x"]'),
  );
  for (const name of [first, second]) store.objects.delete(name);
  await store.client().create(first, [asking]);
  await t.rejects(Repository.open(store.client(), testSecret), { code: 'REPOSITORY_TOO_NEW' });
  await store.client().create(second, [asking]);
  await t.rejects(Repository.open(store.client(), testSecret), { code: 'REPOSITORY_TOO_NEW' });
});

void t.test('a repair adds what is missing, also to a repository that was made without copies', async (t) => {
  const { store } = await testStage();
  store.objects.delete(second);
  const open = async () => Repository.open(store.client(), testSecret);
  t.match(await repair(await open()), { steps: [{ action: 'copy', name: second }] });
  store.damage(first, 100);
  t.match(await repair(await open()), { steps: [{ action: 'copy', name: third }] });
  store.damage(second, 100);
  await open();
  t.equal((await repair(await open())).steps.length, 1);
  t.same((await repair(await open())).steps, []);
});

void t.test('a rotation keeps its revision twice, too', async (t) => {
  const { store, repository } = await testStage();
  const rotated = await repository.rotate([{ secret: testSecret, label: 'x' }], { createdAt: testTime });
  store.damage('config/00000001', 100);
  store.damage('config/00000002', 100);
  const { config } = await Repository.open(store.client(), testSecret);
  t.equal(config.revision, 2);
  t.same(
    (await repair(rotated)).steps.map(({ name }) => name),
    ['config/00000001.3', 'config/00000002.3'],
  );
});

void t.test('nothing in an earlier revision keeps a repository from being opened', async (t) => {
  for (const text of ['no configuration', '{"requires":["x"]}']) {
    const { store, repository } = await testStage();
    await repository.rotate([{ secret: testSecret, label: 'x' }], { createdAt: testTime });
    for (const name of [first, second]) {
      const bytes = store.bytesOf(name).toString('latin1');
      store.objects.delete(name);
      const other = text.startsWith('{') ? bytes.replace('"requires":[]', '"requires":["x"]') : text;
      await store.client().create(name, [Buffer.from(other)]);
    }
    const { config } = await Repository.open(store.client(), testSecret);
    t.equal(config.revision, 2, text);
  }
});
