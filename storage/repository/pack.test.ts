import { hash, randomBytes } from 'node:crypto';
import t from 'tap';
import { ChunkNamer } from './chunkId.ts';
import { dataDomain, flipped, formatStage } from './fixture.ts';
import { KeyRing } from './keyRing.ts';
import { type PackEntry, PackKeys } from './packFormat.ts';
import { checkWholePack, openChunk, readPackContents } from './packReader.ts';
import { PackWriter } from './packWriter.ts';
import { tagBytes } from './seal.ts';

const compressible = Buffer.from('compressible '.repeat(500));
const random = randomBytes(5000);
const short = Buffer.from('x');

/** Reads a pack as a reader does that does not know its name. */
async function readAll(bytes: Buffer, stage: ReturnType<typeof formatStage>): Promise<readonly Buffer[]> {
  const contents = await readPackContents(
    bytes.length,
    (offset, length) => Promise.resolve(bytes.subarray(offset, offset + length)),
    'the pack',
    stage,
  );
  return contents.entries.map((entry) => {
    const blob = bytes.subarray(entry.offsetBytes, entry.offsetBytes + entry.storedBytes + tagBytes);
    return openChunk(blob, entry, contents.keys, stage.namer, 'the pack');
  });
}

void t.test('what is packed is unpacked, compressed where that pays', async (t) => {
  const stage = formatStage();
  const pack = stage.pack([compressible, random, short]);
  const bytes = Buffer.concat(pack.parts);
  t.equal(bytes.length, pack.sizeBytes);
  t.ok(pack.id.equals(hash('sha256', bytes, 'buffer')));
  t.same(await readAll(bytes, stage), [compressible, random, short]);
  const contents = await checkWholePack(bytes, pack.id, stage.namer, stage);
  t.same(contents.entries, pack.entries);
  t.same(
    contents.entries.map(({ codec }) => codec),
    ['zstd', 'none', 'none'],
  );
});

void t.test('no bit of a pack can be turned without being noticed', async (t) => {
  const stage = formatStage();
  const bytes = Buffer.concat(stage.pack([Buffer.from('one'), Buffer.from('two')]).parts);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    await readAll(flipped(bytes, bit), stage).then(
      () => t.fail(`bit ${bit} of byte ${bit >> 3} was not noticed`),
      // A turned bit in the version, or in the generation, is taken for a later one.
      (error: unknown) => t.match(error, { code: /^REPOSITORY_(DAMAGED|TOO_NEW)$/ }),
    );
  }
  for (let length = 0; length < bytes.length; length += 7)
    await t.rejects(readAll(bytes.subarray(0, length), stage), { code: 'REPOSITORY_DAMAGED' });
});

void t.test('a blob counts only in its own slot, pack and repository', async (t) => {
  const stage = formatStage();
  const contents = [Buffer.from('content A'), Buffer.from('content B')];
  const bytes = Buffer.concat(stage.pack(contents).parts);
  const blobBytes = 9 + tagBytes;
  const swapped = Buffer.from(bytes);
  bytes.copy(swapped, 128, 128 + blobBytes, 128 + 2 * blobBytes);
  bytes.copy(swapped, 128 + blobBytes, 128, 128 + blobBytes);
  await t.rejects(readAll(swapped, stage), { code: 'REPOSITORY_DAMAGED', message: /slot 0/ });

  const other = Buffer.concat(stage.pack(contents).parts);
  const mixed = Buffer.from(bytes);
  other.copy(mixed, 128, 128, 128 + blobBytes);
  await t.rejects(readAll(mixed, stage), { code: 'REPOSITORY_DAMAGED', message: /slot 0/ });

  await t.rejects(readAll(bytes, { ...stage, repositoryId: randomBytes(16) }), {
    code: 'REPOSITORY_DAMAGED',
  });
  await t.rejects(readAll(bytes, { ...stage, keys: KeyRing.generate() }), { code: 'REPOSITORY_DAMAGED' });
});

void t.test('a content that is not that of its id is refused, though it is authentic', async (t) => {
  const stage = formatStage();
  const writer = new PackWriter({ kind: 'data', repositoryId: stage.repositoryId, keys: stage.keys });
  writer.add(stage.namer.idOf(dataDomain, Buffer.from('right')), dataDomain, Buffer.from('wrong'));
  await t.rejects(readAll(Buffer.concat(writer.finish().parts), stage), { message: /not that of its id/ });
});

void t.test('a host that has only the public key writes packs that it cannot read', async (t) => {
  const stage = formatStage();
  const writer = new PackWriter({
    kind: 'data',
    repositoryId: stage.repositoryId,
    keys: stage.keys.writer(),
  });
  writer.add(stage.namer.idOf(dataDomain, random), dataDomain, random);
  const bytes = Buffer.concat(writer.finish().parts);
  t.same(await readAll(bytes, stage), [random]);
  await t.rejects(readAll(bytes, { ...stage, keys: KeyRing.generate() }), { code: 'REPOSITORY_DAMAGED' });
});

void t.test('a random generator that repeats itself gives no two texts the same key', (t) => {
  const stage = formatStage();
  const salt = Buffer.alloc(32, 5);
  const header = {
    kind: 'data',
    sealing: 'repository',
    generation: 1,
    repositoryId: stage.repositoryId,
    salt,
    ephemeralKey: Buffer.alloc(32),
  } as const;
  const entry: PackEntry = {
    id: Buffer.alloc(32, 1),
    domain: dataDomain,
    codec: 'zstd',
    level: 1,
    rawBytes: 100,
    storedBytes: 50,
  };
  const keys = new PackKeys(header, stage.keys.key(1, 'data'));
  const variants = [
    keys.blobKey(0, entry),
    keys.blobKey(1, entry),
    keys.blobKey(0, { ...entry, id: Buffer.alloc(32, 2) }),
    keys.blobKey(0, { ...entry, codec: 'none', rawBytes: 50 }),
    keys.blobKey(0, { ...entry, level: 2 }),
    keys.blobKey(0, { ...entry, rawBytes: 101 }),
    keys.blobKey(0, { ...entry, storedBytes: 51 }),
    new PackKeys({ ...header, kind: 'tree' }, stage.keys.key(1, 'data')).blobKey(0, entry),
    new PackKeys({ ...header, salt: Buffer.alloc(32, 6) }, stage.keys.key(1, 'data')).blobKey(0, entry),
    new PackKeys({ ...header, repositoryId: Buffer.alloc(16) }, stage.keys.key(1, 'data')).blobKey(0, entry),
  ].map((key) => key.toString('hex'));
  t.equal(new Set(variants).size, variants.length);
  t.end();
});

void t.test('ids depend on the key, the type and the chunk size', (t) => {
  const content = Buffer.from('the same');
  const namer = new ChunkNamer(Buffer.alloc(32, 1));
  const ids = [
    namer.idOf(dataDomain, content),
    namer.idOf({ ...dataDomain, type: 'page' }, content),
    namer.idOf({ ...dataDomain, chunkSizeBytes: 1024 * 1024 }, content),
    new ChunkNamer(Buffer.alloc(32, 2)).idOf(dataDomain, content),
  ].map((id) => id.toString('hex'));
  t.equal(new Set(ids).size, ids.length);
  t.throws(() => namer.idOf({ ...dataDomain, chunkSizeBytes: 1000 }, content), RangeError);
  t.end();
});
