import { randomInt } from 'node:crypto';
import t from 'tap';
import { StillpointError } from '../../common/errors.ts';
import type { Extent } from '../../common/volumeSource.ts';
import { newId } from '../../common/ids.ts';
import { type Faults, ObjectStore, randomFrom, SimulatedCrash } from '../../test/sim/objectStore.ts';
import type { BackupManifest } from './backupManifest.ts';
import { deleteBackup, listBackups, readManifest } from './backups.ts';
import { collect, remainsIn } from './collectionFixture.ts';
import { manifestName, sessionName } from './names.ts';
import { rebuildIndex } from './rebuild.ts';
import { Repository } from './repository.ts';
import {
  backUp,
  initTestRepository,
  readVolume,
  testChunkBytes,
  testSecret,
  testTime,
} from './repositoryFixture.ts';
import { verifyRepository } from './verifyRepository.ts';

/*
 * Histories of one repository under faults, against a model that knows what must be readable: every backup whose
 * commit was acknowledged and that nobody deleted, byte for byte; none that was never committed.
 */

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
const rounds = Number(process.env['STILLPOINT_TEST_ROUNDS'] ?? 12);
t.comment(`seed ${seed}, ${rounds} histories; STILLPOINT_TEST_SEED repeats them`);

const volumeChunks = 9;

interface Known {
  readonly volume: Buffer;
  /** `unclear`: the commit was not acknowledged, and may have happened. */
  state: 'committed' | 'unclear' | 'deleted' | 'perhaps deleted';
}

class History {
  readonly store = new ObjectStore();
  readonly model = new Map<string, Known>();
  readonly random: () => number;
  committed = 0;
  failed = 0;
  #volume: Buffer = Buffer.alloc(volumeChunks * testChunkBytes);
  #changes: Extent[] = [];
  /** What the increments of the running machine start from. */
  #parent: BackupManifest | null = null;

  constructor(historySeed: number) {
    this.random = randomFrom(historySeed);
  }

  below(max: number): number {
    return Math.floor(this.random() * max);
  }

  /** Faults for one operation: mostly a few of them, sometimes a crash, sometimes none. */
  faults(): Faults {
    const kind = this.below(4);
    if (kind === 0) return {};
    if (kind === 1) {
      return {
        crashAtCall: 1 + this.below(60),
        crashAfterEffect: this.random() < 0.5,
        torn: this.random() < 0.3,
        staleListing: 0.5,
      };
    }
    const rate = () => (this.random() < 0.5 ? 0 : this.random() * 0.05);
    return {
      failBefore: rate(),
      lostAnswer: rate(),
      flippedRead: rate(),
      full: rate(),
      staleListing: this.random() < 0.5 ? 0 : 0.5,
    };
  }

  async open(faults: Faults): Promise<Repository> {
    return Repository.open(this.store.client(faults, this.below(2 ** 31)), testSecret);
  }

  /** The guest writes: random bytes, zeros, or what stands elsewhere in the volume. */
  write(): void {
    const volume = Buffer.from(this.#volume);
    for (let count = this.below(4); count >= 0; count--) {
      const offsetBytes = this.below(volume.length);
      const lengthBytes = 1 + this.below(Math.min(2 * testChunkBytes, volume.length - offsetBytes));
      const kind = this.below(3);
      const target = volume.subarray(offsetBytes, offsetBytes + lengthBytes);
      if (kind === 0) target.fill(0);
      else if (kind === 1) target.fill(this.below(256));
      else for (let at = 0; at < target.length; at += 64) target[at] = this.below(256);
      this.#changes.push({ offsetBytes, lengthBytes, zero: kind === 0 });
    }
    this.#volume = volume;
  }

  async backUp(): Promise<void> {
    const id = newId();
    const known: Known = { volume: this.#volume, state: 'unclear' };
    const attempt = async (): Promise<BackupManifest> => {
      const repository = await this.open(this.faults());
      const increment =
        this.#parent !== null && this.random() < 0.7 ? { parent: this.#parent, changes: this.#changes } : {};
      // From here on it may be committed, whatever we are told.
      this.model.set(id, known);
      return (await backUp(repository, this.#volume, { id, ...increment })).manifest;
    };
    const manifest = await survive(attempt);
    if (manifest === null) {
      this.failed++;
      return;
    }
    this.committed++;
    known.state = 'committed';
    // Invariant 7: the bitmap advances after the commit, and only then.
    this.#parent = manifest;
    this.#changes = [];
  }

  async delete(): Promise<void> {
    const ids = [...this.model].filter(([, { state }]) => state === 'committed').map(([id]) => id);
    const id = ids[this.below(ids.length)];
    if (id === undefined) return;
    const known = this.model.get(id);
    if (known === undefined) return;
    known.state = 'perhaps deleted';
    const done = await survive(async () => {
      const repository = await this.open(this.faults());
      await deleteBackup(repository.context, id, testTime);
      return true;
    });
    if (done === true) known.state = 'deleted';
    if (this.#parent?.id === id) this.#parent = null;
  }

  async rebuild(): Promise<void> {
    if (this.random() < 0.5)
      for (const name of this.store.names('indexes/'))
        if (this.random() < 0.5) this.store.objects.delete(name);
        else if (this.random() < 0.3) this.store.damage(name, this.below(10_000));
    await survive(async () => {
      const repository = await this.open(this.faults());
      return rebuildIndex(repository.context, { dryRun: false });
    });
  }

  /** Collects under faults; what ended before it ended is for the next one. */
  async collect(): Promise<void> {
    await survive(async () => {
      // No listing may be old here: without that promise a collection is refused.
      const repository = await this.open({ ...this.faults(), staleListing: 0 });
      return collect(repository, { repackBelow: this.random() });
    });
  }

  /** What is left in the store when an operator has put away what is torn, and a collection was not disturbed. */
  async remains(): Promise<readonly string[]> {
    const repository = await this.open({});
    for (const { id, problem } of await listBackups(repository.context))
      if (problem !== null) await deleteBackup(repository.context, id, testTime);
    // None of them is half done by anybody else here.
    for (const name of this.store.names('verdicts/')) this.store.objects.delete(name);
    await collect(repository);
    await collect(await this.open({}));
    return remainsIn(this.store);
  }

  /** Reads a backup through faults: right, or an error. */
  async readUnderFaults(): Promise<string | null> {
    const ids = [...this.model].filter(([, { state }]) => state === 'committed').map(([id]) => id);
    const id = ids[this.below(ids.length)];
    const known = id === undefined ? undefined : this.model.get(id);
    if (id === undefined || known === undefined) return null;
    const read = await survive(async () => {
      const repository = await this.open(this.faults());
      const manifest = await readManifest(repository.context, id);
      return manifest === null ? 'missing' : readVolume(repository, manifest);
    });
    if (read === null) return null;
    return read !== 'missing' && read.equals(known.volume)
      ? null
      : `backup ${id} was read wrongly under faults`;
  }

  /** What does not agree with the model, looked at without faults. */
  async disagreements(): Promise<readonly string[]> {
    const repository = await this.open({});
    const listed = new Map((await listBackups(repository.context)).map((backup) => [backup.id, backup]));
    const found: string[] = [...listed.keys()].filter((id) => !this.model.has(id));
    for (const [id, known] of this.model) {
      const manifest = listed.get(id)?.manifest ?? null;
      if (known.state === 'committed' && manifest === null) found.push(`${id} is not listed`);
      if (known.state === 'deleted' && listed.has(id)) found.push(`${id} is deleted, and listed`);
      if (manifest !== null && !(await readVolume(repository, manifest)).equals(known.volume))
        found.push(`${id} is not what it was`);
      // Once it was looked at, nothing is unclear any more; but for a torn manifest, which is listed as damaged.
      if (known.state === 'unclear' && listed.get(id)?.problem == null)
        known.state = manifest === null ? 'deleted' : 'committed';
      if (known.state === 'perhaps deleted') known.state = manifest === null ? 'deleted' : 'committed';
    }
    const report = await verifyRepository(repository.context, await repository.index(), { data: true });
    for (const { id, problems } of report.backups)
      if (this.model.get(id)?.state === 'committed')
        found.push(...problems.map((problem) => `${id}: ${problem}`));
    return found;
  }
}

/** `null` for an operation that failed as it may under faults; what is no error of ours is a bug. */
async function survive<T>(operation: () => Promise<T>): Promise<T | null> {
  try {
    return await operation();
  } catch (error) {
    if (error instanceof SimulatedCrash || error instanceof StillpointError) return null;
    throw error;
  }
}

void t.test(
  'under every fault, what was acknowledged stays readable, and what is read is right',
  async (t) => {
    for (let round = 0; round < rounds; round++) {
      const history = new History(seed + round);
      await initTestRepository(history.store.client(), 128 * 1024);
      for (let step = 0; step < 12; step++) {
        history.write();
        const kind = history.below(12);
        if (kind >= 10) await history.collect();
        else if (kind >= 8) await history.delete();
        else if (kind === 7) await history.rebuild();
        else await history.backUp();
        const wrong = await history.readUnderFaults();
        if (wrong !== null) t.fail(`seed ${seed + round}, step ${step}: ${wrong}`);
        const found = await history.disagreements();
        if (found.length > 0) t.fail(`seed ${seed + round}, step ${step}: ${found.join('; ')}`);
      }
      t.same(await history.remains(), [], `seed ${seed + round}: space comes back`);
      t.same(await history.disagreements(), [], `seed ${seed + round}, collected`);
    }
  },
);

void t.test(
  'a crash at any call of a backup leaves all others whole, and the next one goes on',
  async (t) => {
    const counting = new History(1);
    await initTestRepository(counting.store.client());
    const whole = counting.store.client();
    const first = Buffer.alloc(volumeChunks * testChunkBytes, 1);
    const second = Buffer.alloc(volumeChunks * testChunkBytes);
    for (let at = 0; at < second.length; at += 1000) second[at] = at % 251;
    await backUp(await Repository.open(whole, testSecret), second);
    const calls = whole.calls;
    t.ok(calls > 15, `${calls} calls`);

    for (let call = 1; call <= calls; call++) {
      for (const effect of [{}, { crashAfterEffect: true }, { torn: true }]) {
        const store = new ObjectStore();
        const { manifest } = await backUp(await initTestRepository(store.client()), first);
        const id = newId();
        const client = store.client({ crashAtCall: call, ...effect });
        const died = await survive(async () =>
          backUp(await Repository.open(client, testSecret), second, { id }),
        );
        const after = await Repository.open(store.client(), testSecret);
        const where = `call ${call} ${JSON.stringify(effect)}`;
        t.ok((await readVolume(after, manifest)).equals(first), `${where}: the older backup`);
        const stored = await readManifest(after.context, id).catch((error: unknown) => error);
        const tornCommit = 'torn' in effect && stored instanceof Error;
        if (died !== null && !('id' in Object(stored))) t.fail(`${where}: acknowledged, and not there`);
        // The same job tries again; if its manifest was torn, under another id.
        const again = await backUp(after, second, { id: tornCommit ? newId() : id });
        t.ok((await readVolume(after, again.manifest)).equals(second), `${where}: the next one`);
        t.equal(store.objects.has(sessionName(again.manifest.id)), false, 'no announcement is left');
        t.equal(store.objects.has(manifestName(again.manifest.id)), true);
      }
    }
  },
);

void t.test('what was stored before a crash is not sent again', async (t) => {
  const store = new ObjectStore();
  const repository = await initTestRepository(store.client());
  const volume = Buffer.alloc(40 * testChunkBytes);
  for (let at = 0; at < volume.length; at += 512) volume.writeUInt32BE(at, at);
  const died = await survive(async () =>
    backUp(repository, volume, {
      beforeCommit: async (session) => {
        await session.flush();
        throw new SimulatedCrash('before the commit');
      },
    }),
  );
  t.equal(died, null);
  const next = await backUp(await Repository.open(store.client(), testSecret), volume);
  t.equal(next.session.statistics.newChunks, 0);
});
