import { createHash } from 'node:crypto';
import { cpSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { decodeIndex } from '../../storage/repository/indexObject.ts';
import { KeyRing } from '../../storage/repository/keyRing.ts';
import { formatSlot, sealSlot } from '../../storage/repository/keySlot.ts';
import type { RepositoryContext } from '../../storage/repository/objects.ts';
import { Repository } from '../../storage/repository/repository.ts';
import { formatConfig } from '../../storage/repository/repositoryConfig.ts';
import { testChunkBytes, testManifest, testTime } from '../../storage/repository/repositoryFixture.ts';
import { type ObjectType, sealObject } from '../../storage/repository/sealedObject.ts';
import { goldenKeyFile } from './goldenSecrets.ts';
import { openSlot, parseSlot } from './independentKeys.ts';
import { packTable, parseIndex } from './independentPacks.ts';
import { IndependentReader } from './independentReader.ts';

/*
 * What docs/FORMAT.md says that a reader refuses though it is authentic: what exceeds the limits, or says something
 * that cannot be.
 */

const store = join(import.meta.dirname, '..', 'golden', 'repository-2', 'store');
const secret = { kind: 'keyFile', key: goldenKeyFile } as const;
const keyFile = goldenKeyFile.toString('hex');
const id = '01a207d0-0000-7000-8000-000000000000';
const mebibyte = 1024 * 1024;

void t.test('the other program refuses contents that are over a limit, and no others', async (t) => {
  const { context } = await Repository.open(new FileBackend(store), secret);
  const reader = new IndependentReader(store, { keyFile });
  const problemOf = (type: ObjectType, name: string, content: Buffer) =>
    reader.problemOf(name, sealObject(type, name, content, context));
  const manifest = (change: object) =>
    problemOf('manifest', `manifests/${id}`, json({ ...someManifest(), ...change }));
  const index = (content: Buffer) => problemOfIndex(reader, context, content);
  const mark = 'marks/00000009';
  const packs = (count: number) => json({ formatVersion: 1, collection: 9, packs: Array(count).fill('') });
  const reading = json({ formatVersion: 1, backupId: id, at: testTime, ok: true });

  t.equal(manifest({}), null);
  t.match(manifest({ requires: Array(65).fill('x') }), /requires is over a limit/);
  t.match(manifest({ requires: Array(64).fill('x') }), /manifest requires x/);
  t.match(manifest({ labels: { a: 'a'.repeat(4 * mebibyte) } }), /content is over a limit/);
  t.match(manifest({ volumes: [someVolume(131_072 * 1024 + 1)] }), /pages of a stream is over a limit/);
  t.equal(manifest({ volumes: [someVolume(131_072 * 1024)] }), null);
  t.match(problemOf('mark', mark, packs(500_001)), /packs of a collection is over a limit/);
  t.match(problemOf('mark', mark, packs(500_000)), /a pack of a collection is wrong/);
  t.match(problemOf('reading', `readings/${id}/00010001`, reading), /a record is over a limit/);
  t.equal(problemOf('reading', `readings/${id}/00010000`, reading), null);
  t.match(index(Buffer.concat([u32(100_001), Buffer.alloc(100_001 * 32 + 4)])), /replaces is over a limit/);
  t.equal(index(Buffer.concat([u32(100_000), Buffer.alloc(100_000 * 32 + 4)])), null);
  t.match(index(Buffer.concat([u32(0), u32(100_001)])), /packs in an index is over a limit/);
  t.match(
    index(Buffer.concat([u32(0), u32(1), somePack(256 * mebibyte + 1, 1)])),
    /length of a pack is over/,
  );
  t.match(index(Buffer.concat([u32(0), u32(1), somePack(1000, 65_536)])), /number of blobs is over a limit/);
});

void t.test('the other program refuses headers that announce more than a limit', async (t) => {
  const { context } = await Repository.open(new FileBackend(store), secret);
  const reader = new IndependentReader(store, { keyFile });
  const name = `sessions/${id}`;
  const session = sealObject('session', name, json({ formatVersion: 1, backupId: id }), context);
  t.equal(reader.problemOf(name, session), null);
  session.writeUInt32BE(64 * mebibyte + 1, 32);
  t.match(reader.problemOf(name, session), /content is over a limit/);

  const pack = Buffer.alloc(1000);
  pack.writeUInt32BE(65_536, pack.length - 16);
  pack.write('STILLEND', pack.length - 8);
  t.throws(() => packTable(pack, Buffer.alloc(32)), /blobs is over a limit/);
});

void t.test('the other program refuses configurations and key slots that are over a limit', async (t) => {
  const { context, config } = await Repository.open(new FileBackend(store), secret);
  const reader = new IndependentReader(store, { keyFile });
  const configOf = (change: object) =>
    reader.problemOf('config/00000002', formatConfig({ ...config, ...change }, context.keys));
  t.equal(configOf({}), null);
  t.equal(configOf({ packSizeBytes: 1024 }), null);
  t.equal(configOf({ packSizeBytes: 134_217_728 }), null);
  for (const change of [
    { packSizeBytes: 1023 },
    { packSizeBytes: 134_217_729 },
    { about: 'a'.repeat(64 * 1024) },
  ])
    t.match(configOf(change), /over a limit/);

  const options = { repositoryId: config.repositoryId, label: 'test', createdAt: testTime };
  const ringOf = async (generations: number) => {
    const ring = KeyRing.of(Array.from({ length: generations }, () => Buffer.alloc(32)));
    const slot = await sealSlot(ring, secret, options);
    return openSlot(parseSlot(formatSlot(slot), slot.slotId), { keyFile })?.size;
  };
  t.equal(await ringOf(1000), 1000);
  await t.rejects(ringOf(1001), /generations is over a limit/);
  const slot = await sealSlot(context.keys, secret, options);
  const parsed = (change: object) => parseSlot(json({ ...slot, kind: 'passphrase', ...change }), slot.slotId);
  t.ok(parsed({ scrypt: { logN: 20, r: 8, p: 4 } }));
  for (const scrypt of [
    { logN: 13, r: 8, p: 1 },
    { logN: 21, r: 8, p: 1 },
    { logN: 14, r: 9, p: 1 },
    { logN: 14, r: 8, p: 5 },
  ])
    t.throws(() => parsed({ scrypt }), /scrypt is over a limit/);
  t.throws(() => parsed({ label: 'a'.repeat(64 * 1024) }), /slot is over a limit/);
});

void t.test('the other program does not read files that are over a limit', (t) => {
  const copy = t.testdir();
  cpSync(store, copy, { recursive: true });
  const names = [
    `packs/ab/${'ab'.repeat(32)}`,
    'config/00000001.2',
    'keys/0123456789abcdef',
    'swept/00000001',
  ];
  const sizes = [256 * mebibyte, 64 * 1024, 64 * 1024, 64 * mebibyte + 1024];
  mkdirSync(join(copy, 'packs/ab'), { recursive: true });
  for (const [index, name] of names.entries()) {
    writeFileSync(join(copy, name), '');
    truncateSync(join(copy, name), (sizes[index] ?? 0) + 1);
  }
  const problems = new IndependentReader(copy, { keyFile }).problems();
  for (const name of names) t.match(problems.get(name), /the length of .* is over a limit/, name);
  t.end();
});

void t.test('the other program refuses what is authentic and cannot be', async (t) => {
  const { context } = await Repository.open(new FileBackend(store), secret);
  const reader = new IndependentReader(store, { keyFile });
  const problemOf = (type: ObjectType, name: string, content: object) =>
    reader.problemOf(name, sealObject(type, name, json({ formatVersion: 1, ...content }), context));
  const [volume] = someManifest().volumes;
  for (const change of [
    { id: id.replace('0', '1') },
    { formatVersion: 2 },
    { mode: 'other' },
    { consistency: 'other' },
    { pointInTime: 'today' },
    { machine: { name: 'a/b' } },
    { group: { machines: ['vm'] } },
    { volumes: [] },
    { volumes: [volume, volume] },
    { volumes: [{ ...volume, virtualSizeBytes: 1 }] },
    { volumes: [{ ...volume, kind: 'other' }] },
    { memory: { content: { ...someContent(1), chunkSizeBytes: 65_537 } } },
    { extras: [{ kind: 'network', content: someContent(1) }] },
  ])
    t.ok(problemOf('manifest', `manifests/${id}`, { ...someManifest(), ...change }), JSON.stringify(change));
  const other = {
    backupId: id.replace('0', '1'),
    protected: true,
    reason: null,
    at: testTime,
    ok: true,
    packs: [],
  };
  const record = { ...other, backupId: id, picture: null };
  for (const [type, name, wrong] of [
    ['fence', `manifests/${id}`, other],
    ['deletion', `deletions/${id}`, other],
    ['session', `sessions/${id}.2`, other],
    ['protection', `protections/${id}/00000001`, { ...record, protected: 1 }],
    ['reading', `readings/${id}/00000001`, { ...record, ok: 1 }],
    ['verification', `verifications/${id}/00000001`, { ...record, picture: 1 }],
  ] as const) {
    t.ok(problemOf(type, name, wrong), name);
    t.equal(problemOf(type, name, record), null, name);
    t.ok(problemOf('index', name, record), 'of another type');
  }
  t.ok(problemOf('swept', 'swept/00000009', { collection: 8 }));
  t.ok(problemOf('verdict', 'verdicts/00000009', { collection: 9, packs: ['ab'] }));
  t.ok(problemOf('quarantine', `quarantine/${'ab'.repeat(32)}`, { packId: 'cd'.repeat(32) }));
  const [host] = [...reader.documents('hosts')];
  const [name, document] = host ?? ['', {}];
  t.equal(problemOf('host', name, document), null);
  t.ok(problemOf('host', name, { ...document, files: { 'default.xml': 'another' } }));
  t.ok(
    problemOf('host', name, {
      ...document,
      manifest: String(document['manifest']).replace('9.0.0', '9.0.1'),
    }),
  );
  t.ok(problemOf('host', `hosts/${id}`, document));
});

void t.test('both programs refuse an index that tells of what cannot be', (t) => {
  const blob = {
    id: 'ab',
    type: 1,
    codec: 0,
    reserved: 0,
    chunkSizeBytes: 65_536,
    rawBytes: 9,
    storedBytes: 9,
  };
  const pack = (change: Partial<typeof blob> = {}, kind = 1, more = 0) => {
    const one = { ...blob, ...change };
    const entry = Buffer.alloc(48);
    entry.fill(one.id, 0, 32, 'hex');
    entry.set([one.type, one.codec, 0, one.reserved], 32);
    for (const [index, value] of [one.chunkSizeBytes, one.rawBytes, one.storedBytes].entries())
      entry.writeUInt32BE(value, 36 + index * 4);
    const bytes = Buffer.concat([somePack(128 + one.storedBytes + 16 + 48 + 48 + 16 + more, 0), entry]);
    bytes.writeUInt8(kind, 40);
    bytes.writeUInt32BE(1, 41);
    return Buffer.concat([u32(0), u32(1), bytes]);
  };
  for (const sound of [pack(), pack({ type: 2 }, 2), pack({ codec: 1, rawBytes: 10 })])
    t.ok(parseIndex(sound) && decodeIndex(sound, 'test'));
  for (const [what, wrong] of Object.entries({
    'another kind of pack': pack({ type: 2 }, 3),
    'a page among data': pack({ type: 2 }),
    'data in a tree': pack({}, 2),
    'another type': pack({ type: 4 }),
    'another codec': pack({ codec: 2, rawBytes: 10 }),
    'what is reserved': pack({ reserved: 1 }),
    'a small chunk size': pack({ chunkSizeBytes: 32_768 }),
    'an odd chunk size': pack({ chunkSizeBytes: 65_537 }),
    'an empty chunk': pack({ rawBytes: 0, storedBytes: 0 }),
    'a chunk that is too long': pack({ rawBytes: 65_537, storedBytes: 65_537 }),
    'a page that is too long': pack({ type: 2, rawBytes: 32_769, storedBytes: 32_769 }, 2),
    'a length that is not that of its content': pack({ rawBytes: 10 }),
    'a compressed one that is no shorter': pack({ codec: 1 }),
    'a pack that is not filled': pack({}, 1, 1),
    'something behind it': Buffer.concat([pack(), Buffer.alloc(1)]),
    'less than it says': pack().subarray(0, -1),
  })) {
    t.throws(() => parseIndex(wrong), /is wrong/, what);
    t.throws(() => decodeIndex(wrong, 'test'), { code: 'REPOSITORY_DAMAGED' }, what);
  }
  // To the program an index may name it; there is nothing to read in it.
  const empty = Buffer.concat([u32(0), u32(1), somePack(192, 0)]);
  t.throws(() => parseIndex(empty), /number of blobs is wrong/);
  t.end();
});

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function json(value: object): Buffer {
  return Buffer.from(JSON.stringify(value));
}

function someContent(chunks: number) {
  return { root: 'ab'.repeat(32), sizeBytes: chunks * testChunkBytes, chunkSizeBytes: testChunkBytes };
}

function someManifest() {
  return testManifest(id, someContent(1), someContent(1));
}

/** Of a manifest. */
function someVolume(chunks: number): object {
  const content = someContent(chunks);
  return { ...someManifest().volumes[0], virtualSizeBytes: content.sizeBytes, content };
}

/** As an index object tells of it. */
function somePack(length: number, blobs: number): Buffer {
  const bytes = Buffer.alloc(45 + blobs * 48);
  bytes.writeBigUInt64BE(BigInt(length), 32);
  bytes.writeUInt8(1, 40);
  bytes.writeUInt32BE(blobs, 41);
  return bytes;
}

function problemOfIndex(reader: IndependentReader, context: RepositoryContext, content: Buffer) {
  const bytes = sealObject('index', 'indexes', content, context);
  return reader.problemOf(`indexes/${createHash('sha256').update(bytes).digest('hex')}`, bytes);
}
