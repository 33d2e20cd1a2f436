import t from 'tap';
import { PlaceSet } from './placeSet.ts';
import { checkReferences, referencedChunks } from './references.ts';
import { backUp, someVolume, testStage } from './repositoryFixture.ts';
import { contentsOf } from './backupManifest.ts';
import { packName } from './names.ts';

void t.test('each chunk is looked for once, and each that is lost is told once', async (t) => {
  const { store, repository } = await testStage();
  const { context } = repository;
  const { manifest } = await backUp(repository, someVolume(9));
  const index = await repository.index();
  const reader = await repository.reader();
  const [first] = contentsOf(manifest).map(({ content }) => content);
  if (first === undefined) throw new Error('the backup has no content');
  const ids = new Set<string>();
  for await (const { id } of referencedChunks(reader, first)) ids.add(id.toString('hex'));
  const looked: number[] = [];
  const isUsable = (pack: number): boolean => {
    looked.push(pack);
    return true;
  };
  const twice = [first, first];
  const { packs, ...check } = await checkReferences(context, index, reader, twice, { isUsable });
  t.same(check, { gonePacks: [], lostChunks: [] });
  t.equal(looked.length, ids.size);
  t.same(packs, new Set(looked), 'and the packs that they stand in are named');

  const data = index.packs.filter(({ kind }) => kind === 'data');
  for (const { id } of data) store.objects.delete(packName(id));
  const { gonePacks, lostChunks } = await checkReferences(context, index, reader, twice, {
    isUsable: () => true,
  });
  t.equal(gonePacks.length, data.length);
  const lost = lostChunks.map(({ id }) => id.toString('hex'));
  t.equal(new Set(lost).size, lost.length, 'once');
  t.ok(lost.every((id) => ids.has(id)));
});

void t.test('what is kept of the chunks of a large volume is a bit for each', (t) => {
  const chunks = 1024 * 1024;
  const seen = new PlaceSet(chunks);
  for (let number = 0; number < chunks; number++) seen.add({ number });
  t.ok(seen.memoryBytes <= chunks / 8, `${seen.memoryBytes} bytes`);
  t.end();
});
