import { StillpointError } from '../../common/errors.ts';
import { newId } from '../../common/ids.ts';
import type { Extent } from '../../common/volumeSource.ts';
import { type Faults, ObjectStore, randomFrom, SimulatedCrash } from '../../test/sim/objectStore.ts';
import { Turns } from '../../test/sim/turns.ts';
import { deleteBackup, listBackups, readManifest } from './backups.ts';
import { collect, remainsIn } from './collectionFixture.ts';
import type { Secret } from './keySlot.ts';
import { Repository } from './repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  testChunkBytes,
  testSecret,
  testTime,
} from './repositoryFixture.ts';

/*
 * A history of several hosts that use one repository at once: they write, delete, read and collect, and each of them
 * is suspended for long, crashes and meets faults at any of its calls. The model knows what must be readable; it is
 * compared with the store whenever a backup comes or goes or a pack goes.
 */

/** Small enough that packs hold a few chunks only, and every collection has something to repack. */
const packSizeBytes = 1024;
const volumeChunks = 4;
/** So few contents that what is deleted is soon wanted again. */
const contentsCount = 10;

interface Known {
  readonly volume: Buffer;
  /** `writing` and `unclear` may turn out to be committed at any time. */
  state: 'writing' | 'unclear' | 'committed' | 'deleting' | 'deleted';
}

export interface HistoryShape {
  readonly writers: number;
  readonly collectors: number;
  /** Of each host. */
  readonly operations: number;
}

/** Few hosts meet in more ways than many do, in the same time. */
const shapes: readonly HistoryShape[] = [
  { writers: 3, collectors: 2, operations: 6 },
  { writers: 1, collectors: 1, operations: 5 },
  { writers: 2, collectors: 1, operations: 4 },
  { writers: 1, collectors: 2, operations: 5 },
];

export interface HistoryReport {
  /** What may never be. */
  readonly violations: readonly string[];
  readonly committed: number;
  /** Of these, by hosts that only write. */
  readonly writeOnly: number;
  readonly fenced: number;
  readonly collections: number;
  readonly packsDeleted: number;
}

export class HostsHistory {
  readonly #shape: HistoryShape;
  readonly #store = new ObjectStore();
  readonly #random: () => number;
  readonly #model = new Map<string, Known>();
  readonly #violations: string[] = [];
  readonly #report = { committed: 0, writeOnly: 0, fenced: 0, collections: 0, packsDeleted: 0 };
  readonly #contents: readonly Buffer[];
  readonly #turns: Turns;
  #auditor: Repository | null = null;
  #audited = { packs: 0, manifests: '' };

  constructor(seed: number, shape: HistoryShape) {
    this.#shape = shape;
    this.#random = randomFrom(seed);
    this.#contents = Array.from({ length: contentsCount }, () => this.#content());
    this.#turns = new Turns(randomFrom(seed + 1), {
      suspended: 0.02,
      stretchTurns: 200,
      suspensionTurns: 4000,
      between: async () => this.#auditChanges(),
    });
  }

  async run(): Promise<HistoryReport> {
    const store = this.#store;
    store.pageObjects = 3;
    this.#auditor = await initTestRepository(store.client(), packSizeBytes);
    const slot = { label: 'writes', createdAt: testTime, access: 'write' } as const;
    await this.#auditor.slots.add(writerSecret, slot);
    store.turns = this.#turns;
    await this.#turns.run([
      ...this.#hosts(this.#shape.writers, async () => this.#write()),
      ...this.#hosts(1, async () => this.#delete()),
      ...this.#hosts(1, async () => this.#read()),
      ...this.#hosts(this.#shape.collectors, async () => this.#collect()),
    ]);
    store.turns = null;
    store.settle(Number.POSITIVE_INFINITY);
    await this.#finish();
    return { violations: this.#violations, ...this.#report };
  }

  /** Once nobody disturbs it, a collection leaves nothing that is not needed, and all that is. */
  async #finish(): Promise<void> {
    await this.#audit();
    // The first one may only finish what another one began.
    for (let round = 0; round < 2; round++) {
      const failure = await this.#attempt(async () => {
        await collect(await Repository.open(this.#store.client(), testSecret));
      });
      if (failure !== null) this.#violations.push(`an undisturbed collection failed: ${failure.message}`);
    }
    await this.#audit();
    for (const remain of await remainsIn(this.#store)) this.#violations.push(`at the end: ${remain}`);
  }

  async #write(): Promise<void> {
    const id = newId();
    const volume = Buffer.concat(
      Array.from({ length: volumeChunks }, () => this.#pick(this.#contents) ?? zeros),
    );
    const known: Known = { volume, state: 'writing' };
    const parentId = this.#random() < 0.4 ? this.#pick(this.#ids('committed')) : null;
    const abandons = this.#random() < 0.1;
    const attempts = this.#random() < 0.3 ? 2 : 1;
    this.#model.set(id, known);
    const secret = this.#random() < 0.3 ? writerSecret : testSecret;
    const looksAtParent = this.#random() < 0.5;
    for (let attempt = 0; attempt < attempts; attempt++) {
      const faults = this.#faults({ staleListing: 0.2 });
      const failure = await this.#attempt(async () => {
        const repository = await this.#open(faults, secret);
        const increment = await this.#increment(repository, parentId, volume);
        await backUp(repository, volume, {
          id,
          ...increment,
          // Who cannot read what is gone elsewhere must know before.
          looksAtParent: secret === writerSecret || looksAtParent,
          beforeCommit: async (session) => {
            if (abandons) await session.abandon();
          },
        });
      });
      if (failure === null) {
        this.#report.committed++;
        if (secret === writerSecret) this.#report.writeOnly++;
        if (known.state === 'writing') known.state = 'committed';
        return;
      }
      if (codeOf(failure) === 'BACKUP_FENCED') this.#report.fenced++;
      else if (faults === noFaults && !abandons && (parentId === null || this.#isCommitted(parentId)))
        this.#violations.push(`a writer without faults failed: ${failure.message}`);
    }
    if (known.state === 'writing') known.state = 'unclear';
  }

  /** What differs from a parent, if that can still be read. */
  async #increment(repository: Repository, parentId: string | null, volume: Buffer) {
    const parent = parentId === null ? null : await readManifest(repository.context, parentId);
    const known = parentId === null ? undefined : this.#model.get(parentId);
    if (parent === null || known === undefined) return {};
    const changes: Extent[] = [];
    for (let offsetBytes = 0; offsetBytes < volume.length; offsetBytes += testChunkBytes) {
      const end = offsetBytes + testChunkBytes;
      if (!volume.subarray(offsetBytes, end).equals(known.volume.subarray(offsetBytes, end)))
        changes.push({ offsetBytes, lengthBytes: testChunkBytes, zero: false });
    }
    return { parent, changes };
  }

  async #delete(): Promise<void> {
    const id = this.#pick(this.#ids('committed'));
    const known = id === null ? undefined : this.#model.get(id);
    if (id === null || known === undefined) return this.#pause();
    known.state = 'deleting';
    const failure = await this.#attempt(async () => {
      const repository = await this.#open(this.#faults());
      await deleteBackup(repository.context, id, testTime);
    });
    if (failure === null) known.state = 'deleted';
  }

  async #read(): Promise<void> {
    const id = this.#pick(this.#ids('committed'));
    const known = id === null ? undefined : this.#model.get(id);
    if (id === null || known === undefined) return this.#pause();
    const faults = this.#faults({ staleListing: 0 });
    const failure = await this.#attempt(async () => {
      const repository = await this.#open(faults);
      const manifest = await readManifest(repository.context, id);
      if (manifest === null) return;
      if (!(await readVolume(repository, manifest)).equals(known.volume))
        this.#violations.push(`${id} was read wrongly`);
    });
    if (failure !== null && faults === noFaults && this.#isCommitted(id))
      this.#violations.push(`a reader without faults failed: ${failure.message}`);
  }

  async #collect(): Promise<void> {
    await this.#attempt(async () => {
      const repository = await this.#open(this.#faults());
      const report = await collect(repository, {
        repackBelow: this.#pick([0, 0.5, 1]) ?? 1,
        onOpenSession: async () => {
          await this.#pause();
          const answer = this.#random();
          if (answer < 0.9) return 'wait';
          return answer < 0.98 ? 'fence' : 'leave';
        },
      });
      this.#report.collections++;
      this.#report.packsDeleted += report.packsDeleted;
    });
  }

  async #auditChanges(): Promise<void> {
    const packs = this.#store.names('packs/').length;
    const manifests = [...this.#store.names('manifests/'), ...this.#store.names('deletions/')].join();
    const isSame = packs >= this.#audited.packs && manifests === this.#audited.manifests;
    this.#audited = { packs, manifests };
    if (!isSame) await this.#audit();
  }

  /** Every backup that is listed restores, byte for byte; all that were acknowledged are listed, no deleted one is. */
  async #audit(): Promise<void> {
    const repository = this.#auditor;
    if (repository === null) return;
    repository.forgetIndex();
    const listed = new Map((await listBackups(repository.context)).map((backup) => [backup.id, backup]));
    for (const [id, { manifest, problem }] of listed) {
      const known = this.#model.get(id);
      const volume = manifest === null ? problem : await readVolume(repository, manifest).catch(messageOf);
      if (known === undefined) this.#violations.push(`${id} was never written`);
      else if (known.state === 'deleted') this.#violations.push(`${id} is deleted, and listed`);
      else if (!Buffer.isBuffer(volume)) this.#violations.push(`${id} cannot be read: ${volume}`);
      else if (!volume.equals(known.volume)) this.#violations.push(`${id} is not what it was`);
      else if (known.state !== 'deleting') known.state = 'committed';
    }
    for (const id of this.#ids('committed'))
      if (!listed.has(id)) this.#violations.push(`${id} is not listed`);
  }

  /** What the operation failed with, as it may under faults; what is no error of ours is a bug. */
  async #attempt(operation: () => Promise<void>): Promise<Error | null> {
    try {
      await operation();
      return null;
    } catch (error) {
      if (error instanceof SimulatedCrash || error instanceof StillpointError) return error;
      throw error;
    }
  }

  #hosts(count: number, operation: () => Promise<void>): readonly Promise<void>[] {
    return Array.from({ length: count }, async () => {
      // After the first violation the rest tells nothing.
      for (let time = 0; time < this.#shape.operations && this.#violations.length === 0; time++)
        await operation();
    });
  }

  async #open(faults: Faults, secret = testSecret): Promise<Repository> {
    return Repository.open(this.#store.client(faults, Math.floor(this.#random() * 2 ** 31)), secret);
  }

  /** Lets the others go on for a while. */
  async #pause(): Promise<void> {
    await this.#turns.take({});
  }

  #faults(also: Faults = {}): Faults {
    const kind = this.#random();
    if (kind < 0.5) return noFaults;
    if (kind < 0.75)
      return { crashAtCall: 1 + Math.floor(this.#random() * 120), crashAfterEffect: this.#random() < 0.5 };
    const rate = () => (this.#random() < 0.5 ? 0 : this.#random() * 0.03);
    const rates = { failBefore: rate(), lostAnswer: rate(), late: rate(), full: rate(), flippedRead: rate() };
    return { ...rates, ...also };
  }

  #isCommitted(id: string): boolean {
    return this.#model.get(id)?.state === 'committed';
  }

  #ids(state: Known['state']): readonly string[] {
    return [...this.#model].filter(([, known]) => known.state === state).map(([id]) => id);
  }

  #pick<T>(items: readonly T[]): T | null {
    return items[Math.floor(this.#random() * items.length)] ?? null;
  }

  /** A chunk that takes little. */
  #content(): Buffer {
    const content = Buffer.alloc(testChunkBytes);
    for (let at = 0; at < 300; at++) content[at] = Math.floor(this.#random() * 256);
    return content;
  }
}

/** The history of a seed. */
export function historyOf(seed: number): HostsHistory {
  const shape = shapes[seed % shapes.length];
  if (shape === undefined) throw new Error('there is no shape');
  return new HostsHistory(seed, shape);
}

/** Of hosts that only write. */
const writerSecret: Secret = { kind: 'keyFile', key: Buffer.alloc(32, 7) };
const noFaults: Faults = {};
const zeros = Buffer.alloc(testChunkBytes);

function codeOf(error: Error): string | null {
  return error instanceof StillpointError ? error.code : null;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
