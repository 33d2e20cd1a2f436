import * as fc from 'fast-check';
import t from 'tap';
import { RepositoryError } from './errors.ts';
import { flipped, formatStage } from './fixture.ts';
import { decodeIndex, encodeIndex } from './indexObject.ts';
import { KeyRing } from './keyRing.ts';
import { formatSlot, parseSlot, sealSlot } from './keySlot.ts';
import { readPackContents } from './packReader.ts';
import { formatConfig, parseConfig } from './repositoryConfig.ts';
import { openObject, sealObject } from './sealedObject.ts';
import { decodePage, decodeRoot, encodeRoot } from './streamRoot.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed}`);
const stage = formatStage();
const repositoryId = '0198c0de-0000-7000-8000-000000000001';
const packs = [stage.pack([Buffer.from('one'), Buffer.from('two')])];
const config = {
  format: 'stillpoint-repository',
  formatVersion: 1,
  revision: 1,
  repositoryId,
  createdAt: '2026-11-21T10:00:00.000Z',
  keyGeneration: 1,
  requires: [] as string[],
  chunkSizeBytes: 1024 * 1024,
  packSizeBytes: 32 * 1024 * 1024,
  capabilities: { createExclusive: true, consistentListing: true },
} as const;
const slot = await sealSlot(
  stage.keys,
  { kind: 'keyFile', key: Buffer.alloc(32, 1) },
  { repositoryId, label: '', createdAt: config.createdAt },
);

interface Parser {
  readonly name: string;
  readonly valid: Buffer;
  parse(bytes: Buffer): unknown;
}

const parsers: readonly Parser[] = [
  {
    name: 'pack',
    valid: Buffer.concat(packs[0]?.parts ?? []),
    parse: async (bytes) =>
      readPackContents(
        bytes.length,
        (offset, length) => Promise.resolve(bytes.subarray(offset, offset + length)),
        'x',
        stage,
      ),
  },
  {
    name: 'index',
    valid: encodeIndex({ supersedes: [Buffer.alloc(32)], packs }),
    parse: (bytes) => decodeIndex(bytes, 'x'),
  },
  {
    name: 'object',
    valid: sealObject('manifest', 'manifests/x', Buffer.from('content'), stage),
    parse: (bytes) => openObject(bytes, 'manifests/x', ['manifest'], stage),
  },
  {
    name: 'root',
    valid: encodeRoot({ sizeBytes: 100_000, chunkSizeBytes: 65_536, pageIds: [Buffer.alloc(32)] }),
    parse: (bytes) => decodeRoot(bytes, 'x'),
  },
  { name: 'page', valid: Buffer.alloc(64), parse: (bytes) => decodePage(bytes, 2, 'x') },
  {
    name: 'key ring of a writer',
    valid: stage.keys.rotated().writer().encode(),
    parse: (bytes) => KeyRing.decodeWriter(bytes),
  },
  { name: 'key ring', valid: stage.keys.rotated().encode(), parse: (bytes) => KeyRing.decode(bytes) },
  { name: 'key slot', valid: formatSlot(slot), parse: (bytes) => parseSlot(bytes, 'x') },
  {
    name: 'config',
    valid: formatConfig(config, stage.keys),
    parse: (bytes) => parseConfig(bytes, 1).prove(stage.keys),
  },
];

/** `true` when it was read, `false` when it was refused as it should be; anything else is thrown. */
async function accepts(parser: Parser, bytes: Buffer): Promise<boolean> {
  try {
    await parser.parse(bytes);
    return true;
  } catch (error) {
    if (error instanceof RepositoryError) return false;
    throw error;
  }
}

for (const parser of parsers) {
  void t.test(`${parser.name}: whatever comes is read or refused, never anything else`, async (t) => {
    t.equal(await accepts(parser, parser.valid), true, 'the valid one is read');
    const anything = fc.uint8Array({ maxLength: 400 }).map((bytes) => Buffer.from(bytes));
    const bent = fc
      .tuple(
        fc.array(fc.nat(parser.valid.length * 8 - 1), { maxLength: 4 }),
        fc.nat(parser.valid.length),
        fc.nat(parser.valid.length),
        fc.uint8Array({ maxLength: 20 }),
      )
      .map(([bits, from, to, insert]) => {
        const base = bits.reduce<Buffer>((bytes, bit) => flipped(bytes, bit), parser.valid);
        return Buffer.concat([base.subarray(0, from), insert, base.subarray(to)]);
      });
    await fc.assert(
      fc.asyncProperty(fc.oneof(anything, bent), async (bytes) => {
        await accepts(parser, bytes);
      }),
      { seed, numRuns: 1500 },
    );
  });
}

void t.test(
  'no turned bit of an object passes, and it counts under its own name and type only',
  async (t) => {
    const bytes = sealObject('manifest', 'manifests/a', Buffer.from('the content'), stage);
    const parser = (name: string, types: Parameters<typeof openObject>[2]): Parser => ({
      name,
      valid: bytes,
      parse: (given) => openObject(given, name, types, stage),
    });
    const right = parser('manifests/a', ['manifest', 'fence']);
    t.equal(await accepts(right, bytes), true);
    for (let bit = 0; bit < bytes.length * 8; bit++)
      if (await accepts(right, flipped(bytes, bit))) t.fail(`bit ${bit} was not noticed`);
    t.equal(await accepts(parser('manifests/b', ['manifest']), bytes), false, 'another name');
    t.equal(await accepts(parser('manifests/a', ['fence']), bytes), false, 'another type');
  },
);

void t.test('a feature that is not known is refused before anybody is asked for a secret', (t) => {
  const bytes = formatConfig({ ...config, requires: ['erasure-coding'] }, stage.keys);
  t.throws(() => parseConfig(bytes, 1), { code: 'REPOSITORY_TOO_NEW', message: /erasure-coding/ });
  t.throws(() => parseConfig(formatConfig(config, stage.keys), 2), { code: 'REPOSITORY_DAMAGED' });
  t.throws(() => parseConfig(formatConfig(config, KeyRing.generate()), 1).prove(stage.keys), {
    code: 'REPOSITORY_DAMAGED',
  });
  t.end();
});
