import { createHash, randomBytes } from 'node:crypto';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { newId } from '../../common/ids.ts';
import { listAll } from '../../storage/backends/backend.ts';
import { FileBackend } from '../../storage/backends/fileBackend.ts';
import { deleteBackup } from '../../storage/repository/backups.ts';
import { collectGarbage } from '../../storage/repository/collection.ts';
import { readVerdict } from '../../storage/repository/collectionRecords.ts';
import { quarantine } from '../../storage/repository/condemned.ts';
import { putHost } from '../../storage/repository/hostRecords.ts';
import { encodeIndex } from '../../storage/repository/indexObject.ts';
import { manifestName, packName, sessionName } from '../../storage/repository/names.ts';
import { createOnce, putIndex, putObject } from '../../storage/repository/objects.ts';
import { PackWriter } from '../../storage/repository/packWriter.ts';
import { writeProtection } from '../../storage/repository/protections.ts';
import { addReading } from '../../storage/repository/readingRecords.ts';
import { repairRepository } from '../../storage/repository/repair.ts';
import { Repository } from '../../storage/repository/repository.ts';
import {
  backUp,
  testChunkBytes,
  testManifest,
  testTime,
  volumeSource,
} from '../../storage/repository/repositoryFixture.ts';
import { writeStream } from '../../storage/repository/streamWriter.ts';
import { addVerification } from '../../storage/repository/verificationRecords.ts';
import { goldenCost, goldenLines as lines, goldenSecrets } from './goldenSecrets.ts';

/*
 * The second golden repository: what the first one has not. Some of it is damaged or gone, as a place of storage may
 * leave it, and a collection is in the middle of its sweep.
 */

const packSizeBytes = 16 * 1024;
const later = '2026-11-21T11:00:00.000Z';

/** What a test must find in it, beside the backups. */
export interface Expected2 {
  /** By the ids of backups: why each may not be deleted. */
  readonly protections: Readonly<Record<string, string | null>>;
  readonly readings: Readonly<Record<string, object>>;
  readonly verifications: Readonly<Record<string, object>>;
  readonly hosts: readonly object[];
  readonly collection: object;
  /** Objects that are damaged. */
  readonly damaged: readonly string[];
  /** What stands out among the objects, by their names. */
  readonly objects: Readonly<Record<string, string>>;
}

/** Makes the repository; returns it and what is in it. */
export async function makeRepository2(
  store: string,
): Promise<{ readonly repository: Repository; readonly more: Expected2 }> {
  const stage = new Stage(store);
  await stage.backend.prepare();
  const first = await Repository.init(stage.backend, {
    ...goldenSecrets[0],
    createdAt: testTime,
    chunkSizeBytes: testChunkBytes,
    packSizeBytes,
    scryptCost: goldenCost,
  });
  const whole = await backUpWhole(first);
  const again = await stage.backUpAgain(first);
  const content = lines(7_000_000, testChunkBytes);
  const { manifest: spoilt } = await backUp(first, content);
  const hosts = await stage.addHosts(first);
  await collectAfterDeletion(first);

  const repository = await first.rotate(goldenSecrets, { createdAt: later, cost: goldenCost });
  await stage.spoilConfig(repository);
  await stage.backUpSealed(repository);
  await stage.interruptCollection(repository);
  await stage.spoilPack(repository, content);
  // What stood in the damaged pack is stored once more.
  await backUp(repository, content);
  await stage.loseIndex(repository);
  await stage.announce(repository);
  const records = await stage.addRecords(repository, [whole, again, spoilt.id]);
  await rm(stage.path('config/00000001'));
  stage.objects['config/00000001.2'] = 'the copy of a configuration that is gone';
  const { objects, damaged } = stage;
  const collection = { number: 2, marked: true, judged: true };
  return { repository, more: { ...records, hosts, collection, damaged: damaged.toSorted(), objects } };
}

/** The store and what is remembered of it. */
class Stage {
  readonly backend: FileBackend;
  readonly objects: Record<string, string> = {};
  readonly damaged: string[] = [];
  readonly #store: string;

  constructor(store: string) {
    this.#store = store;
    this.backend = new FileBackend(store);
  }

  path(name: string): string {
    return join(this.#store, name);
  }

  /** A backup that was given up, and written by its second attempt. */
  async backUpAgain(repository: Repository): Promise<string> {
    const id = newId();
    await (await repository.begin({ backupId: id, startedAt: testTime })).abandon();
    await backUp(repository, lines(3_000_000, 1234), { id, afterFence: true });
    this.objects[`manifests/${id}`] = 'a fence';
    this.objects[`manifests/${id}.2`] = 'the manifest of the attempt after it';
    return id;
  }

  /** Backups of two hosts. A repair takes one away, which is damaged. */
  async addHosts(repository: Repository): Promise<Expected2['hosts']> {
    const [good, bad] = [await putGoldenHost(repository), await putGoldenHost(repository)];
    await this.#flip(`hosts/${bad}`, 100);
    await repair(repository);
    this.objects[`hosts/${good}`] = 'a host';
    this.objects[`damaged/hosts/${bad}`] = 'a host that a repair took away';
    return [{ id: good, files: hostFiles }];
  }

  /** Has the newest configuration say something else; a repair makes a third copy. */
  async spoilConfig(repository: Repository): Promise<void> {
    const name = 'config/00000002';
    const text = await readFile(this.path(name), 'utf8');
    await writeFile(this.path(name), text.replace('"packSizeBytes":16384', '"packSizeBytes":16385'));
    await repair(repository);
    this.damaged.push(name);
    this.objects[name] = 'a configuration that only its HMAC shows to be damaged';
    this.objects[`${name}.2`] = 'the same as it was';
    this.objects[`${name}.3`] = 'the copy that a repair made';
  }

  /** A backup of which the data stands in a pack that a host without the keys has made. */
  async backUpSealed(repository: Repository): Promise<void> {
    const { context } = repository;
    const content = lines(4_000_000, testChunkBytes);
    const domain = { type: 'data', chunkSizeBytes: testChunkBytes } as const;
    const { repositoryId } = context;
    const writer = new PackWriter({ kind: 'data', repositoryId, keys: context.keys.writer() });
    writer.add(context.namer.idOf(domain, content), domain, content);
    const pack = writer.finish();
    await createOnce(context.backend, packName(pack.id), pack.parts);
    await putIndex(context, encodeIndex({ supersedes: [], packs: [pack] }));
    await backUp(repository, content);
    this.objects[packName(pack.id)] = 'a pack that is sealed to the public key';
  }

  /** A collection that was cut off when it would have deleted an index object that it has replaced. */
  async interruptCollection(repository: Repository): Promise<void> {
    const before = await this.#names('indexes/');
    const shared = lines(5_000_000, testChunkBytes);
    const { manifest } = await backUp(repository, Buffer.concat([shared, lines(6_000_000, testChunkBytes)]));
    const own = await this.#names('indexes/');
    await backUp(repository, shared);
    const deleted = manifestName(manifest.id);
    const bytes = await readFile(this.path(deleted));
    await deleteBackup(repository.context, manifest.id, later);
    // As after a deletion that was cut off.
    await writeFile(this.path(deleted), bytes);
    this.objects[`deletions/${manifest.id}`] = 'a deletion';
    this.objects[deleted] = 'the manifest of a backup that is deleted';
    const interrupted = await Repository.open(new InterruptedBackend(this.#store), goldenSecrets[1].secret);
    const failure: unknown = await collect(interrupted, 0).catch((error: unknown) => error);
    if (!(failure instanceof Interruption)) throw new Error('the collection was not cut off');
    repository.forgetIndex();
    for (const name of own)
      if (!before.includes(name)) this.objects[name] = 'an index that another one replaces';
    const verdict = await readVerdict(repository.context, 2);
    for (const pack of verdict?.packs ?? [])
      this.objects[packName(Buffer.from(pack, 'hex'))] = 'a pack that the verdict deletes';
    this.objects['marks/00000002'] = 'the mark of the collection that goes on';
    this.objects['verdicts/00000002'] = 'its verdict';
    this.objects['swept/00000001'] = 'the end of the collection before it';
  }

  /** Damages the pack with a chunk; it keeps its name, and is in quarantine. */
  async spoilPack(repository: Repository, content: Buffer): Promise<void> {
    const { context } = repository;
    const index = await repository.index();
    const id = context.namer.idOf({ type: 'data', chunkSizeBytes: testChunkBytes }, content);
    const [place] = index.find(id);
    if (place === undefined) throw new Error('the chunk is in no pack');
    const pack = index.pack(place.pack).id;
    await this.#flip(packName(pack), place.entry.offsetBytes + 40);
    await quarantine(context, pack, { reason: 'golden', at: later });
    this.damaged.push(packName(pack));
    this.objects[packName(pack)] = 'a damaged pack';
    this.objects[`quarantine/${pack.toString('hex')}`] = 'what tells of it';
  }

  /** A backup of which the index got lost: its packs tell themselves what is in them. */
  async loseIndex(repository: Repository): Promise<void> {
    const [indexes, packs] = [await this.#names('indexes/'), await this.#names('packs/')];
    await backUp(repository, lines(8_000_000, testChunkBytes + 5));
    for (const name of await this.#names('indexes/')) if (!indexes.includes(name)) await rm(this.path(name));
    for (const name of await this.#names('packs/'))
      if (!packs.includes(name)) this.objects[name] = 'a pack that no index names';
    repository.forgetIndex();
  }

  /** A session, as somebody who writes announces it; not with what is true of the machine that makes this. */
  async announce(repository: Repository): Promise<void> {
    const backupId = newId();
    const owner = { startTicks: 1000, bootId: '00000000-0000-4000-8000-000000000000', machine: null };
    const record = { formatVersion: 1, backupId, host: 'golden', processId: 1000, owner, startedAt: later };
    const name = sessionName(backupId);
    await putObject(repository.context, 'session', name, Buffer.from(JSON.stringify(record)));
    this.objects[name] = 'a session';
  }

  /** What is said of three backups: the first may not be deleted, the second may again, of the third it got damaged. */
  async addRecords(
    { context }: Repository,
    [first, second, third]: readonly [string, string, string],
  ): Promise<Pick<Expected2, 'protections' | 'readings' | 'verifications'>> {
    for (const id of [first, second, third]) await writeProtection(context, id, { reason: 'golden' });
    for (const id of [second, third]) await writeProtection(context, id, null);
    const spoilt = `protections/${third}/00000002`;
    await this.#flip(spoilt, 100);
    this.damaged.push(spoilt);
    this.objects[spoilt] = 'a damaged protection, which protects';
    await addReading(context, first, { at: testTime, ok: false });
    await addReading(context, first, { at: later, ok: true });
    const verification = {
      at: later,
      ok: true,
      start: 'resume',
      evidence: 'serial',
      detail: 'it answers',
      durationMs: 1234,
    } as const;
    await addVerification(context, first, verification, Buffer.from('a picture'));
    return {
      protections: { [first]: 'golden', [third]: 'damaged' },
      readings: { [first]: { at: later, ok: true } },
      verifications: { [first]: verification },
    };
  }

  async #names(prefix: string): Promise<readonly string[]> {
    return (await listAll(this.backend, prefix)).map(({ name }) => name);
  }

  async #flip(name: string, offset: number): Promise<void> {
    const bytes = await readFile(this.path(name));
    bytes.writeUInt8(bytes.readUInt8(offset) ^ 1, offset);
    await writeFile(this.path(name), bytes);
  }
}

class Interruption extends Error {}

/** Ends a collection where it would delete the index objects that it has replaced. */
class InterruptedBackend extends FileBackend {
  override async delete(name: string): Promise<void> {
    if (name.startsWith('indexes/')) throw new Interruption();
    await super.delete(name);
  }
}

/** A backup with every kind of stream, and with all that a manifest may say. */
async function backUpWhole(repository: Repository): Promise<string> {
  const id = newId();
  const session = await repository.begin({ backupId: id, startedAt: testTime });
  const put = async (content: Buffer) =>
    writeStream(volumeSource(content), session, { chunkSizeBytes: testChunkBytes });
  // Its first page is all zeros.
  const long = Buffer.concat([Buffer.alloc(1025 * testChunkBytes), lines(1_000_000, testChunkBytes + 5)]);
  const definition = await put(Buffer.from('<domain/>'));
  const simple = testManifest(id, await put(long), definition);
  const [volume] = simple.volumes;
  if (volume === undefined) throw new Error('there is no volume');
  const empty = await put(Buffer.alloc(0));
  const encrypted = await put(lines(2_000_000, 70_000));
  const content = await put(Buffer.concat([randomBytes(3000), lines(9, 2 * testChunkBytes)]));
  const nvram = await put(randomBytes(540));
  const network = await put(Buffer.from('<network/>'));
  await session.commit({
    ...simple,
    mode: 'live',
    consistency: 'memory',
    consistencyReason: 'golden',
    checkpoint: 'golden',
    pauseMs: 12.5,
    freezeMs: 3,
    group: { id: newId(), machines: ['vm', 'other'] },
    volumes: [
      { ...volume, storedBytes: testChunkBytes + 5 },
      { ...volume, target: 'vdb', virtualSizeBytes: 0, content: empty, kind: 'block', format: 'raw' },
      {
        ...volume,
        target: 'vdc',
        storedBytes: 70_000,
        content: encrypted,
        encrypted: true,
        reason: 'golden',
      },
    ],
    memory: { content, running: true },
    extras: [
      { kind: 'nvram', content: nvram, source: '/var/lib/libvirt/qemu/nvram/vm.fd' },
      { kind: 'network', content: network, name: 'default' },
    ],
    steps: [{ name: 'freeze', durationMs: 3 }],
    labels: { about: 'golden' },
  });
  return id;
}

const hostFiles = { 'default.xml': '<network><name>default</name></network>\n' };

async function putGoldenHost({ context }: Repository): Promise<string> {
  const id = newId();
  const text = hostFiles['default.xml'];
  const sha256 = createHash('sha256').update(text).digest('hex');
  const manifest = {
    formatVersion: 1,
    kind: 'host',
    id,
    writer: 'golden',
    host: { name: 'golden', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: testTime,
    items: [{ kind: 'network', name: 'default', file: 'default.xml', sizeBytes: text.length, sha256 }],
  } as const;
  await putHost(context, { ...manifest, items: [...manifest.items] }, new Map(Object.entries(hostFiles)));
  return id;
}

/** Deletes a backup, and collects with repacking. */
async function collectAfterDeletion(repository: Repository): Promise<void> {
  const { manifest } = await backUp(repository, lines(9_000_000, 1000));
  await deleteBackup(repository.context, manifest.id, testTime);
  await collect(repository, 1);
  repository.forgetIndex();
}

async function collect(repository: Repository, repackBelow: number): Promise<void> {
  const collector = { host: 'golden', at: testTime };
  await collectGarbage(repository, { collector, repackBelow, onOpenSession: async () => 'fence' });
}

async function repair(repository: Repository): Promise<void> {
  await repairRepository(repository, { data: true, apply: true, at: later, packSizeBytes, isAlone: true });
}
