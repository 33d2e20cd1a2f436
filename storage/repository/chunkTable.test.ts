import { randomBytes } from 'node:crypto';
import t from 'tap';
import { ChunkTable } from './chunkTable.ts';
import type { PlacedEntry } from './packFormat.ts';

/** An entry that has the largest, or the smallest, of everything. */
function entry(id: Buffer, large: boolean): PlacedEntry {
  return {
    id,
    domain: { type: large ? 'root' : 'data', chunkSizeBytes: large ? 16_777_216 : 65_536 },
    codec: large ? 'zstd' : 'none',
    level: large ? 19 : 0,
    rawBytes: large ? 16_777_216 : 1,
    storedBytes: large ? 16_777_215 : 1,
    slot: large ? 65_534 : 0,
    offsetBytes: large ? 250_000_000 : 128,
  };
}

void t.test('every chunk is found where it is, also with the largest numbers, and no other is', (t) => {
  const table = new ChunkTable();
  const ids = Array.from({ length: 40_000 }, () => randomBytes(32));
  for (const [index, id] of ids.entries()) table.add(index, entry(id, index % 2 === 0));
  for (const [index, id] of ids.entries()) {
    const found = [...table.find(id)];
    if (found.length !== 1 || found[0]?.pack !== index) t.fail(`chunk ${index}`);
  }
  const [first, second] = ids;
  if (first === undefined || second === undefined) throw new Error('no ids');
  t.same([...table.find(first)], [{ number: 0, pack: 0, entry: entry(first, true) }]);
  t.same([...table.find(second)], [{ number: 1, pack: 1, entry: entry(second, false) }]);
  t.same([...table.find(randomBytes(32))], []);
  t.end();
});

void t.test('a chunk that is in several packs is found in all of them, and a pack knows its chunks', (t) => {
  const table = new ChunkTable();
  const id = randomBytes(32);
  for (const pack of [5, 6, 7]) table.add(pack, entry(id, false));
  table.add(6, entry(randomBytes(32), false));
  t.same(
    [...table.find(id)].map(({ pack }) => pack),
    [5, 6, 7],
  );
  t.equal([...table.ofPack(6)].length, 2);
  t.end();
});

void t.test('many chunks take no more than 60 bytes each, however many there are', (t) => {
  const table = new ChunkTable();
  let most = 0;
  const shared = entry(Buffer.alloc(32), false);
  for (let index = 0; index < 1_000_000; index++) {
    const id = Buffer.alloc(32);
    // A hash has good bytes everywhere; a multiplication is enough of one here.
    id.writeUInt32LE(Math.imul(index, 2_654_435_761) >>> 0);
    id.writeUInt32LE(index, 4);
    table.add(index, { ...shared, id });
    // Of few chunks the first block takes more, which is nothing.
    if (table.count > 200_000) most = Math.max(most, table.memoryBytes / table.count);
  }
  t.equal(table.count, 1_000_000);
  t.ok(most <= 60, `${most} bytes`);
  t.end();
});

void t.test('what was reserved is room for so many chunks, and takes no more', (t) => {
  const [reserved, grown] = [new ChunkTable(), new ChunkTable()];
  reserved.add(0, entry(randomBytes(32), false));
  reserved.reserve(50_000);
  const reservedBytes = reserved.memoryBytes;
  const ids = Array.from({ length: 50_000 }, () => randomBytes(32));
  for (const table of [reserved, grown]) for (const id of ids) table.add(7, entry(id, false));
  t.ok(ids.every((id) => [...reserved.find(id)].length === 1));
  t.ok(reserved.memoryBytes <= grown.memoryBytes, `${reserved.memoryBytes} and ${grown.memoryBytes} bytes`);
  const recordBytes = reserved.memoryBytes - reservedBytes;
  t.ok(recordBytes <= 51 * 50_000 + 51 * 4096, 'the table itself has not grown any more');
  t.end();
});
