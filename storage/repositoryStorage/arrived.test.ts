import { randomBytes } from 'node:crypto';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { ObjectStore } from '../../test/sim/objectStore.ts';
import type { Backend, ListedObject, ReadOptions } from '../backends/backend.ts';
import { StorageError } from '../errors.ts';
import type { JobFate } from '../repository/leftSessions.ts';
import { prefixes } from '../repository/names.ts';
import { Repository } from '../repository/repository.ts';
import {
  initTestRepository,
  testChunkBytes,
  testSecret,
  volumeSource,
} from '../repository/repositoryFixture.ts';
import type { BackupWriter } from '../storage.ts';
import { machine } from './fixture.ts';
import { RepositoryStorage } from './repositoryStorage.ts';

/*
 * The connection to a store breaks in the middle of a backup and stays away for longer than any retry, so the job ends
 * failed; or its process dies. What had arrived by then must not be sent again, by whomever.
 */

/** A connection that breaks when so many packs have gone through it, and counts what goes. */
class BreakingBackend implements Backend {
  readonly location = 'simulated store';
  readonly objectLock = null;
  readonly #store: Backend;
  packsUntilBreak = Number.POSITIVE_INFINITY;
  isAway = false;
  /** Of packs, that have arrived. */
  sentBytes = 0;
  readonly listed: string[] = [];

  constructor(store: ObjectStore) {
    this.#store = store.client();
  }

  async create(name: string, parts: readonly Buffer[]): Promise<'created' | 'exists'> {
    const isPack = name.startsWith(prefixes.packs);
    if (isPack && this.packsUntilBreak-- <= 0) this.isAway = true;
    this.#requireThere();
    if (isPack) this.sentBytes += parts.reduce((sum, { length }) => sum + length, 0);
    return this.#store.create(name, parts);
  }

  async createsExclusively(): Promise<boolean> {
    this.#requireThere();
    return true;
  }

  async read(name: string, options?: ReadOptions): Promise<Buffer | null> {
    this.#requireThere();
    return this.#store.read(name, options);
  }

  async size(name: string): Promise<number | null> {
    this.#requireThere();
    return this.#store.size(name);
  }

  async *list(prefix: string): AsyncIterable<ListedObject> {
    this.#requireThere();
    this.listed.push(prefix);
    yield* this.#store.list(prefix);
  }

  async delete(name: string): Promise<void> {
    this.#requireThere();
    return this.#store.delete(name);
  }

  #requireThere(): void {
    if (this.isAway) throw away();
  }
}

function away(): StorageError {
  return new StorageError('STORAGE_UNREACHABLE', 'the connection is broken', { retryable: true });
}

interface Stage {
  readonly store: ObjectStore;
  readonly connection: BreakingBackend;
  readonly fates: Map<string, JobFate>;
  /** The storage as another process opens it. */
  readonly open: () => RepositoryStorage;
}

async function stageFor(): Promise<Stage> {
  const store = new ObjectStore();
  await initTestRepository(store.client());
  const connection = new BreakingBackend(store);
  const fates = new Map<string, JobFate>();
  const open = (): RepositoryStorage =>
    new RepositoryStorage({
      name: 'cloud',
      location: 'simulated store',
      open: () => Repository.open(connection, testSecret),
      room: () => Promise.resolve(null),
      fateOf: (jobId) => fates.get(jobId) ?? 'unknown',
    });
  return { store, connection, fates, open };
}

/** 40 chunks of random bytes: ten packs. */
const chunks = 40;
const volume = randomBytes(chunks * testChunkBytes);
const packsBeforeBreak = 6;

/** A backup whose connection breaks on the way. @returns what has arrived of it */
async function breakOff(
  { connection, fates, open }: Stage,
  jobId: string,
  backupId = newId(),
): Promise<number> {
  fates.set(jobId, 'unfinished');
  connection.packsUntilBreak = packsBeforeBreak;
  const writer = await open().begin({ jobId, backupId, machine });
  const failed = await writer.addVolume(volumeSource(volume), 'v').then(
    () => null,
    (error: unknown) => error,
  );
  if (!(failed instanceof StorageError)) throw new Error(`it has not failed: ${String(failed)}`);
  connection.packsUntilBreak = Number.POSITIVE_INFINITY;
  const arrived = connection.sentBytes;
  connection.sentBytes = 0;
  return arrived;
}

async function storeAll(writer: BackupWriter): Promise<void> {
  await writer.addVolume(volumeSource(volume), 'v');
  await writer.flush();
}

/** What is sent beside the data: pages and roots, and a pack that was on its way when the connection broke. */
const slackBytes = 5 * testChunkBytes;

void t.test(
  'the next backup sends only what had not arrived of one that failed while the store was away',
  async (t) => {
    const stage = await stageFor();
    const { connection, fates, open, store } = stage;
    const [jobId, backupId] = [newId(), newId()];
    const arrived = await breakOff(stage, jobId, backupId);
    t.ok(arrived >= (packsBeforeBreak - 1) * 4 * testChunkBytes, `${arrived} bytes have arrived`);
    await t.rejects(
      open().begin({ jobId, backupId, machine }),
      { code: 'STORAGE_UNREACHABLE' },
      'nor can it be ended',
    );
    fates.set(jobId, 'ended');
    connection.isAway = false;

    const next = await open().begin({ jobId: newId(), backupId: newId(), machine });
    await storeAll(next);
    t.ok(
      connection.sentBytes <= volume.length - arrived + slackBytes,
      `${connection.sentBytes} of ${volume.length} bytes were sent, ${arrived} had arrived`,
    );
    t.equal(store.names(prefixes.sessions).length, 1, 'and the session of the failed one is ended');
    await t.rejects(open().begin({ jobId, backupId, machine }), { code: 'BACKUP_FENCED' }, 'for good');
  },
);

void t.test('nor does it where the store came back before the job had ended', async (t) => {
  const stage = await stageFor();
  const { connection, fates, open } = stage;
  const [jobId, backupId] = [newId(), newId()];
  const arrived = await breakOff(stage, jobId, backupId);
  connection.isAway = false;
  // As a job does that is given up.
  await (await open().begin({ jobId, backupId, machine })).abandon();
  fates.set(jobId, 'ended');
  await storeAll(await open().begin({ jobId: newId(), backupId: newId(), machine }));
  t.ok(
    connection.sentBytes <= volume.length - arrived + slackBytes,
    `${connection.sentBytes} bytes were sent`,
  );
});

void t.test('a job that is recovered goes on with what its dead process had sent', async (t) => {
  const stage = await stageFor();
  const { connection, open, store } = stage;
  const [jobId, backupId] = [newId(), newId()];
  const arrived = await breakOff(stage, jobId, backupId);
  connection.isAway = false;
  await storeAll(await open().begin({ jobId, backupId, machine }));
  t.ok(
    connection.sentBytes <= volume.length - arrived + slackBytes,
    `${connection.sentBytes} bytes were sent`,
  );
  t.equal(store.names(prefixes.manifests).length, 0, 'it is not given up');
});

void t.test('a backup that other hosts or jobs are writing is left alone', async (t) => {
  const stage = await stageFor();
  const { connection, fates, open, store } = stage;
  for (const fate of ['unfinished', 'unknown'] as const) {
    const jobId = newId();
    await breakOff(stage, jobId);
    fates.set(jobId, fate);
    connection.isAway = false;
  }
  await open().begin({ jobId: newId(), backupId: newId(), machine });
  t.equal(store.names(prefixes.sessions).length, 3);
  t.same(store.names(prefixes.manifests), [], 'nobody is fenced');
});

void t.test(
  'a backup of which nothing was left costs no look at the packs, nor does its commit',
  async (t) => {
    const { connection, fates, open } = await stageFor();
    const [jobId, backupId] = [newId(), newId()];
    fates.set(jobId, 'unfinished');
    const storage = open();
    await storeAll(await storage.begin({ jobId, backupId, machine }));
    await storage.begin({ jobId, backupId, machine });
    t.notOk(connection.listed.includes(prefixes.packs), connection.listed.join(' '));
    await open().begin({ jobId, backupId, machine });
    t.ok(connection.listed.includes(prefixes.packs), 'another process looks: it knows nothing of the first');
  },
);
