import * as fc from 'fast-check';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import { decodeManifest, encodeManifest } from './backupManifest.ts';
import { decode, encode } from './codec.ts';
import { readMark, readVerdict } from './collectionRecords.ts';
import { RepositoryError } from './errors.ts';
import { listHosts } from './hostRecords.ts';
import { formatKeyFile, parseKeyFile } from './keySlot.ts';
import {
  backupIdOf,
  indexIdOf,
  numberedRecordOf,
  numberOf,
  packIdOf,
  prefixes,
  quarantinedPackOf,
} from './names.ts';
import type { RepositoryContext } from './objects.ts';
import { openSessions } from './openSessions.ts';
import { readProtection } from './protections.ts';
import { formatRecoveryKey, newRecoveryKey, parseRecoveryKey } from './recoveryKey.ts';
import { testManifest, testStage, testTime } from './repositoryFixture.ts';
import { type ObjectType, sealObject } from './sealedObject.ts';
import { listVerifications } from './verificationRecords.ts';

/*
 * What comes in a sealed envelope was written by somebody who has the key, which says nothing about what it is: a later
 * version, another implementation, a host that was taken over.
 */

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);
const { repository } = await testStage();
const { context } = repository;
const id = newId();
const content = { root: 'ab'.repeat(32), sizeBytes: 4096, chunkSizeBytes: 65_536 };

/** A document, and what reads it. */
interface Document {
  readonly name: string;
  readonly valid: object;
  readonly read: (this: void, bytes: Buffer) => unknown;
}

/** A document that stands in a store, under its own name and type. */
function stored(
  name: string,
  type: ObjectType,
  valid: object,
  read: (context: RepositoryContext) => Promise<unknown>,
): Document {
  return {
    name: type,
    valid: { formatVersion: 1, ...valid },
    read: async (bytes) => {
      const backend = new ObjectStore().client();
      await backend.create(name, [sealObject(type, name, bytes, context)]);
      return read({ ...context, backend });
    },
  };
}

const collection = { collection: 1, host: 'h', at: testTime, packs: ['cd'.repeat(32)] };
const verified = {
  at: testTime,
  ok: true,
  start: 'boot',
  evidence: null,
  detail: '',
  durationMs: 1,
  picture: null,
};
const announced = { host: 'h', jobId: id, processId: 1, startedAt: testTime };
const fullManifest = testManifest(id, content, content, {
  memory: { content, running: true },
  group: { id, machines: ['a', 'b'] },
  steps: [{ name: 'x', durationMs: 1 }],
  labels: { a: 'b' },
  extras: [
    { kind: 'nvram', content, source: '/nvram' },
    { kind: 'network', content, name: 'n' },
  ],
});
const documents: readonly Document[] = [
  {
    name: 'manifest',
    valid: JSON.parse(encodeManifest(fullManifest).toString()),
    read: (bytes) => decodeManifest(bytes, 'x'),
  },
  stored('marks/00000001', 'mark', collection, (at) => readMark(at, 1)),
  stored('verdicts/00000001', 'verdict', collection, (at) => readVerdict(at, 1)),
  stored(`protections/${id}/00000001`, 'protection', { backupId: id, protected: true, reason: null }, (at) =>
    readProtection(at, id),
  ),
  stored(`verifications/${id}/00000001`, 'verification', { backupId: id, ...verified }, (at) =>
    listVerifications(at),
  ),
  stored(`sessions/${id}`, 'session', announced, (at) => openSessions(at)),
  stored(`hosts/${id}`, 'host', { manifest: '{}', files: { a: 'b' } }, (at) => listHosts(at)),
];

/** A document with one of its values, at any depth, in the place of something else, or with none. */
function bent(valid: unknown): fc.Arbitrary<unknown> {
  return fc
    .tuple(fc.nat(pathsOf(valid).length - 1), fc.option(fc.jsonValue(), { nil: undefined }))
    .map(([number, value]) => replaced(valid, pathsOf(valid)[number] ?? [], value));
}

function pathsOf(value: unknown): readonly (readonly string[])[] {
  const below =
    typeof value === 'object' && value !== null
      ? Object.entries(value).flatMap(([key, child]) => pathsOf(child).map((path) => [key, ...path]))
      : [];
  return [[], ...below];
}

function replaced(value: unknown, [key, ...rest]: readonly string[], by: unknown): unknown {
  if (key === undefined) return by;
  if (Array.isArray(value))
    return value.map((item, at) => (String(at) === key ? replaced(item, rest, by) : item));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, child]) => [name, name === key ? replaced(child, rest, by) : child]),
  );
}

/** Whatever is no error of the repository is thrown. */
async function readOrRefused(read: () => unknown): Promise<void> {
  try {
    await read();
  } catch (error) {
    if (!(error instanceof RepositoryError)) throw error;
  }
}

for (const { name, valid, read } of documents)
  void t.test(
    `${name}: whatever an authentic object says is read or refused, never anything else`,
    async () => {
      await read(Buffer.from(JSON.stringify(valid)));
      const text = bent(valid).map((value) => Buffer.from(JSON.stringify(value) ?? ' '));
      const cut = fc
        .tuple(fc.integer({ min: 1, max: JSON.stringify(valid).length }), fc.uint8Array({ maxLength: 20 }))
        .map(([end, tail]) => Buffer.concat([Buffer.from(JSON.stringify(valid)).subarray(0, end), tail]));
      await fc.assert(
        fc.asyncProperty(
          fc.oneof({ weight: 4, arbitrary: text }, { weight: 1, arbitrary: cut }),
          async (bytes) => {
            await readOrRefused(() => read(bytes));
          },
        ),
        { seed, numRuns: 600 },
      );
    },
  );

for (const { name, valid, read } of documents)
  void t.test(`${name}: what a later version says besides is passed over, wherever it stands`, async (t) => {
    const wanted: unknown = await read(Buffer.from(JSON.stringify(valid)));
    for (const path of pathsOf(valid)) {
      const more = withMore(valid, path);
      if (more === undefined) continue;
      t.same(await read(Buffer.from(JSON.stringify(more))), wanted, path.join('.'));
    }
  });

/** With a field that nobody knows in the object at a path; nothing where there is none that has fields. */
function withMore(valid: unknown, path: readonly string[]): unknown {
  let there = valid;
  for (const key of path) there = new Map<string, unknown>(Object.entries(there ?? {})).get(key);
  const isMap = path.at(-1) === 'labels' || path.at(-1) === 'files';
  if (typeof there !== 'object' || there === null || Array.isArray(there) || isMap) return undefined;
  return replaced(valid, path, { ...there, later: 'x' });
}

void t.test('a stored chunk is decompressed to its very length, or not at all', async (t) => {
  const encoded = encode(Buffer.alloc(5000, 'text '));
  t.equal(encoded.codec, 'zstd');
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc.tuple(fc.nat(encoded.bytes.length - 1), fc.nat(255)).map(([at, byte]) => {
      const copy = Buffer.from(encoded.bytes);
      copy[at] = byte;
      return copy;
    }),
  );
  fc.assert(
    fc.property(
      bytes,
      fc.constantFrom('zstd', 'none'),
      fc.constantFrom(0, 1, 4999, 5000),
      (given, codec, size) => {
        const found = decode(Buffer.from(given), codec, size);
        return found === null || found.length === size;
      },
    ),
    { seed, numRuns: 2000 },
  );
});

void t.test('a key that somebody types or puts into a file is read or refused, and never told', async () => {
  const key = newRecoveryKey();
  const [typed, inFile] = [formatRecoveryKey(key), formatKeyFile(key)];
  const text = fc.oneof(
    fc.string({ unit: 'grapheme', maxLength: 80 }),
    fc
      .tuple(fc.constantFrom(typed, inFile), fc.nat(70), fc.nat(70), fc.string({ maxLength: 3 }))
      .map(([base, from, to, inserted]) => base.slice(0, from) + inserted + base.slice(to)),
  );
  await fc.assert(
    fc.asyncProperty(text, async (given) => {
      for (const parse of [parseRecoveryKey, parseKeyFile])
        await readOrRefused(() => {
          if (parse(given).length !== 32) throw new Error('it is no key');
        });
    }),
    { seed, numRuns: 2000 },
  );
});

void t.test('whatever an object is called, its name is one of ours or none', (t) => {
  const parsers = [
    packIdOf,
    indexIdOf,
    quarantinedPackOf,
    (name: string) => backupIdOf(name, prefixes.manifests),
    (name: string) => numberedRecordOf(name, 'protections'),
    (name: string) => numberOf(name, prefixes.marks),
  ];
  const prefix = fc.constantFrom('', ...Object.values(prefixes));
  const rest = fc.oneof(
    fc.string({ maxLength: 90 }),
    fc.constantFrom(id, `${id}/00000001`, '00000001', 'ab'.repeat(32), `ab/${'ab'.repeat(32)}`),
  );
  fc.assert(
    fc.property(prefix, rest, fc.string({ maxLength: 2 }), (first, second, tail) => {
      const name = first + second + tail;
      return parsers.filter((parse) => parse(name) !== null).length <= 1;
    }),
    { seed, numRuns: 2000 },
  );
  t.end();
});
