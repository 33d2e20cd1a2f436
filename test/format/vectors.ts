import { pathToFileURL } from 'node:url';
import { ChunkNamer } from '../../storage/repository/chunkId.ts';
import { encodeIndex } from '../../storage/repository/indexObject.ts';
import { KeyRing } from '../../storage/repository/keyRing.ts';
import { formatSlot, type Secret, sealSlot } from '../../storage/repository/keySlot.ts';
import { PackWriter } from '../../storage/repository/packWriter.ts';
import { formatRecoveryKey } from '../../storage/repository/recoveryKey.ts';
import { formatConfig, uuidBytes } from '../../storage/repository/repositoryConfig.ts';
import { deriveKey, seal } from '../../storage/repository/seal.ts';
import { sealObject } from '../../storage/repository/sealedObject.ts';
import { encodeRoot } from '../../storage/repository/streamRoot.ts';

/*
 * The test vectors of docs/FORMAT.md. `node test/format/vectors.ts > test/golden/vectors.json` writes them; a test
 * compares. Nothing in them is long enough to be compressed, so that they do not depend on a version of zstd.
 */

const repositoryId = '0198c0de-0000-7000-8000-000000000001';
const createdAt = '2026-11-21T10:00:00.000Z';
const chunkSizeBytes = 65_536;

/** 32 bytes that count up from a number. */
function counting(from: number): Buffer {
  return Buffer.from(Array.from({ length: 32 }, (_, index) => (from + index) % 256));
}

const masters = [counting(0), counting(100)];
const secrets: Readonly<Record<'passphrase' | 'keyFile' | 'recovery', Secret>> = {
  passphrase: { kind: 'passphrase', passphrase: 'a still caf\u00e9' },
  keyFile: { kind: 'keyFile', key: counting(32) },
  recovery: { kind: 'recovery', key: counting(64) },
};

export async function buildVectors(): Promise<object> {
  const ring = KeyRing.of(masters);
  const id = uuidBytes(repositoryId);
  const namer = new ChunkNamer(ring.dedupKey);
  const context = { repositoryId: id, keys: ring };
  const slots = await Promise.all(
    Object.values(secrets).map(async (secret, index) =>
      sealSlot(ring, secret, {
        repositoryId,
        label: secret.kind,
        createdAt,
        slotId: `000000000000000${index}`,
        salt: counting(index),
        cost: { logN: 14, r: 8, p: 1 },
      }),
    ),
  );
  const writerSlot = await sealSlot(ring.writer(), secrets.keyFile, {
    repositoryId,
    label: 'writer',
    createdAt,
    slotId: '0000000000000003',
    salt: counting(3),
  });
  const contents = [Buffer.from('first chunk'), Buffer.from('second chunk')];
  const domain = { type: 'data', chunkSizeBytes } as const;
  const packOf = (keys: KeyRing) => {
    const writer = new PackWriter({
      kind: 'data',
      repositoryId: id,
      keys,
      salt: counting(200),
      ephemeralSecret: counting(150),
    });
    for (const content of contents) writer.add(namer.idOf(domain, content), domain, content);
    return writer.finish();
  };
  const pack = packOf(ring);
  const publicPack = packOf(ring.writer());
  const root = encodeRoot({ sizeBytes: 70_000, chunkSizeBytes, pageIds: [counting(9)] });
  const name = 'manifests/0198c0de-0000-7000-8000-000000000002';
  return {
    about: 'Test vectors of docs/FORMAT.md; all bytes in hexadecimal',
    repositoryId,
    masters: masters.map(hex),
    encodedRing: hex(ring.encode()),
    encodedRingOfWriter: hex(ring.writer().encode()),
    derived: {
      data1: hex(ring.key(1, 'data')),
      tree2: hex(ring.key(2, 'tree')),
      dedup: hex(ring.dedupKey),
      sealingPublicKey2: hex(ring.sealingPublicKey(2)),
      signerId2: hex(ring.signerId(2)),
    },
    seal: {
      key: hex(deriveKey(counting(0), 'example')),
      bound: hex(Buffer.from('bound')),
      text: hex(Buffer.from('text')),
      sealed: hex(seal(deriveKey(counting(0), 'example'), Buffer.from('bound'), Buffer.from('text'))),
    },
    secrets: {
      passphrase: 'a still caf\u00e9',
      keyFile: hex(counting(32)),
      recovery: formatRecoveryKey(counting(64)),
    },
    slots: slots.map((slot) => formatSlot(slot).toString('utf8')),
    slotOfWriter: formatSlot(writerSlot).toString('utf8'),
    config: formatConfig(
      {
        format: 'stillpoint-repository',
        formatVersion: 1,
        revision: 1,
        repositoryId,
        createdAt,
        keyGeneration: 2,
        requires: [],
        chunkSizeBytes,
        packSizeBytes: 1024 * 1024,
        capabilities: { createExclusive: true, consistentListing: true },
      },
      ring,
    ).toString('utf8'),
    chunks: contents.map((content) => ({
      content: hex(content),
      chunkSizeBytes,
      data: hex(namer.idOf(domain, content)),
      page: hex(namer.idOf({ type: 'page', chunkSizeBytes }, content)),
      root: hex(namer.idOf({ type: 'root', chunkSizeBytes }, content)),
    })),
    pack: { id: hex(pack.id), bytes: hex(Buffer.concat(pack.parts)) },
    packSealedToPublicKey: { id: hex(publicPack.id), bytes: hex(Buffer.concat(publicPack.parts)) },
    root: { sizeBytes: 70_000, chunkSizeBytes, pageIds: [hex(counting(9))], bytes: hex(root) },
    index: {
      content: hex(encodeIndex({ supersedes: [counting(3)], packs: [pack] })),
      content2: hex(encodeIndex({ supersedes: [], packs: [] })),
    },
    signedObject: {
      name,
      content: hex(Buffer.from('{"short":true}')),
      bytes: hex(sealObject('manifest', name, Buffer.from('{"short":true}'), context)),
    },
    unsignedObject: {
      name: 'indexes',
      content: hex(Buffer.from('content')),
      bytes: hex(sealObject('index', 'indexes', Buffer.from('content'), context)),
    },
  };
}

function hex(bytes: Buffer): string {
  return bytes.toString('hex');
}

const program = process.argv[1];
if (program !== undefined && import.meta.url === pathToFileURL(program).href)
  process.stdout.write(`${JSON.stringify(await buildVectors(), null, 2)}\n`);
