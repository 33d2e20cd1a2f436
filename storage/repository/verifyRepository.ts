import { messageOf } from '../../common/errors.ts';
import type { CallOptions } from '../backends/backend.ts';
import type { ManifestExtra } from '../manifest.ts';
import { Run } from '../run.ts';
import type { VerifyOptions } from '../storage.ts';
import { type BackupManifest, contentsOf } from './backupManifest.ts';
import { isFollowed, listBackups, readManifest } from './backups.ts';
import type { ChunkIndex } from './chunkIndex.ts';
import { ChunkReader } from './chunkReader.ts';
import type { ChunkWork } from './chunkWorkers.ts';
import { RepositoryError } from './errors.ts';
import { findLostFences, isLost, lostFenceText } from './lostFences.ts';
import { deletionName, manifestName, packName } from './names.ts';
import { packBytesMax } from './limits.ts';
import { readWhole, type RepositoryContext } from './objects.ts';
import { checkWholePack } from './packReader.ts';
import { referencedChunks } from './references.ts';
import type { Repository } from './repository.ts';

/** What is wrong with a backup. */
export interface BackupReport {
  readonly id: string;
  /** `null` when its manifest cannot be read. */
  readonly machine: { readonly name: string; readonly uuid: string } | null;
  readonly problems: readonly string[];
  /** Ids (hex) of chunks that are missing or damaged, as far as it is known which ones it needs. */
  readonly lostChunks: readonly string[];
}

export interface RepositoryReport {
  /** Every backup that exists can be read, as far as was looked. */
  readonly ok: boolean;
  /** Every byte of every pack that a backup needs was read and compared. */
  readonly data: boolean;
  /** The oldest one first. */
  readonly backups: readonly BackupReport[];
  /** Packs in which something is damaged; and, if a backup is, those that are gone though an index names them. */
  readonly damagedPacks: readonly PackProblem[];
}

export interface PackProblem {
  readonly id: Buffer;
  readonly reason: string;
}

/**
 * Checks every backup: its manifest, its roots and pages, and that each of its chunks stands in a pack that is there;
 * with `data`, every byte of these packs, each once. Damage is in the report; only a store that does not answer rejects.
 */
export async function verifyRepository(
  context: RepositoryContext,
  index: ChunkIndex,
  options: PackVerdictOptions,
): Promise<RepositoryReport> {
  if (options.data) context.keys.requireReading(context.storage);
  // What no index names counts as well.
  await index.readUnknownPacks(options);
  const packs = new PackVerdicts(context, index, options);
  const backups: BackupReport[] = [];
  for (const { id, manifest, problem } of await listBackups(context, options)) {
    const problems = problem === null ? [] : [problem];
    const lostChunks: string[] = [];
    for (const { name, content } of manifest === null ? [] : contentsOf(manifest)) {
      const { detail, lost } = await checkStream(context, index, packs, content, options);
      if (detail !== null) problems.push(`${name}: ${detail}`);
      for (const chunk of lost) lostChunks.push(chunk.toString('hex'));
    }
    // One that was deleted meanwhile may be without its data.
    if (problems.length > 0 && (await context.backend.size(deletionName(id), options)) !== null) continue;
    backups.push({ id, machine: manifest?.machine ?? null, problems, lostChunks });
  }
  const isWhole = backups.every(({ problems }) => problems.length === 0);
  // A collection takes packs away; only where something is missing it matters that one is gone.
  const damagedPacks = isWhole ? packs.damaged : [...packs.damaged, ...packs.gone];
  const lost = Map.groupBy(await findLostFences(context, options), ({ backupId }) => backupId);
  const reports = backups.map((backup) => ({
    ...backup,
    problems: [...backup.problems, ...(lost.get(backup.id) ?? []).map(lostFenceText)],
  }));
  const ok = reports.every(({ problems }) => problems.length === 0);
  return { ok, data: options.data, backups: reports, damagedPacks };
}

/** What of a backup is looked at: a stream, and how it came out. */
export interface VerifiedStream {
  readonly file: string;
  readonly kind: 'volume' | 'memory' | 'definition' | ManifestExtra['kind'] | 'manifest';
  readonly verdict: 'ok' | 'digest' | 'missing';
  readonly detail: string | null;
}

/**
 * Checks one backup as `verifyRepository` does all of them; with `data`, every byte of the packs that it needs, each
 * once. Damage is in the report; only a store that does not answer rejects.
 */
export async function verifyBackup(
  repository: Pick<Repository, 'context' | 'index'>,
  backupId: string,
  options: PackVerdictOptions & { readonly onProgress?: VerifyOptions['onProgress'] },
): Promise<readonly VerifiedStream[]> {
  const report = (detail: string): readonly VerifiedStream[] => [
    { file: manifestName(backupId), kind: 'manifest', verdict: 'missing', detail },
  ];
  const { context } = repository;
  if (options.data) context.keys.requireReading(context.storage);
  let manifest: BackupManifest | null;
  try {
    manifest = await readManifest(context, backupId, options);
  } catch (error) {
    if (error instanceof RepositoryError) return report(messageOf(error));
    throw error;
  }
  if (manifest === null) return report('it is not there any more');
  const fences = await verifyFences(context, backupId, options);
  const index = await repository.index(options);
  await index.readUnknownPacks(options);
  const bytesTotal = contentsOf(manifest).reduce((sum, { content }) => sum + content.sizeBytes, 0);
  let bytesDone = 0;
  const packs = new PackVerdicts(context, index, options, () =>
    options.onProgress?.({ bytesDone, bytesTotal }),
  );
  const streams: VerifiedStream[] = [...fences];
  for (const { name, kind, content } of contentsOf(manifest)) {
    const { detail } = await checkStream(context, index, packs, content, options);
    streams.push({ file: name, kind, verdict: detail === null ? 'ok' : 'digest', detail });
    bytesDone += content.sizeBytes;
    options.onProgress?.({ bytesDone, bytesTotal });
  }
  return streams;
}

/** Fences of earlier attempts at a backup that are not there. */
async function verifyFences(
  context: RepositoryContext,
  backupId: string,
  options: CallOptions,
): Promise<readonly VerifiedStream[]> {
  const lost: VerifiedStream[] = [];
  // Only somebody who has the backup elsewhere makes a second attempt; nearly always there is none.
  for (let attempt = 1; await isFollowed(context, { backupId, attempt }, options); attempt++)
    if (await isLost(context, { backupId, attempt }, options))
      lost.push({
        file: manifestName(backupId, attempt),
        kind: 'manifest',
        verdict: 'missing',
        detail: `${lostFenceText({ backupId, attempt })}; storage check ${context.storage} --repair --apply makes it again`,
      });
  return lost;
}

/** The first thing that is wrong with a stream, and which chunks are missing. */
async function checkStream(
  context: RepositoryContext,
  index: ChunkIndex,
  packs: PackVerdicts,
  content: Parameters<typeof referencedChunks>[1],
  options: CallOptions,
): Promise<{ readonly detail: string | null; readonly lost: readonly Buffer[] }> {
  let lost: Buffer[] = [];
  let batch: Buffer[] = [];
  try {
    for await (const { id } of referencedChunks(new ChunkReader(context, index), content, options)) {
      batch.push(id);
      if (batch.length < batchChunks) continue;
      lost.push(...(await notGood(index, packs, batch)));
      batch = [];
    }
    lost.push(...(await notGood(index, packs, batch)));
    // A collection may have moved them since the index was read.
    while (lost.length > 0 && (await hasNewPacks(index, options))) lost = await notGood(index, packs, lost);
  } catch (error) {
    if (!(error instanceof RepositoryError)) throw error;
    return { detail: messageOf(error), lost };
  }
  if (lost.length === 0) return { detail: null, lost };
  const fate = context.keys.isWriter
    ? 'missing or damaged, or in packs that no index names: this host cannot look into those'
    : 'missing or damaged';
  return { detail: `${lost.length} chunks are ${fate}`, lost };
}

async function hasNewPacks(index: ChunkIndex, options: CallOptions): Promise<boolean> {
  return (await index.refresh(options)) || (await index.readUnknownPacks(options)).length > 0;
}

async function notGood(index: ChunkIndex, packs: PackVerdicts, ids: readonly Buffer[]): Promise<Buffer[]> {
  await packs.look(ids.flatMap((id) => [...index.find(id)].slice(0, 1).map(({ pack }) => pack)));
  const bad: Buffer[] = [];
  for (const id of ids) if (!(await isGood(index, packs, id))) bad.push(id);
  return bad;
}

/** One good place is enough. */
async function isGood(index: ChunkIndex, packs: PackVerdicts, id: Buffer): Promise<boolean> {
  for (const { pack, entry } of index.find(id)) if (await packs.isGood(pack, entry.slot)) return true;
  return false;
}

/** Chunks whose packs are looked at together. */
const batchChunks = 1024;
/** Packs that are looked at at once: while one is read others are compared, each in memory; or questions for lengths. */
const looksMax = { data: 3, size: 16 } as const;

interface PackVerdictOptions extends CallOptions {
  readonly data: boolean;
  /** Names of packs that are known to be good, byte by byte; those that turn out so are added. */
  readonly compared?: Set<string> | undefined;
  /** Called for each pack in which something is damaged, when that is found. */
  readonly onDamagedPack?: ((problem: PackProblem) => Promise<void>) | undefined;
}

/** What was found out about packs. */
class PackVerdicts {
  readonly #context: RepositoryContext;
  readonly #index: ChunkIndex;
  readonly #options: PackVerdictOptions;
  readonly #onPack: () => void;
  /** `null`: all of it is good; otherwise the slots that are. */
  readonly #good = new Map<number, ReadonlySet<number> | null>();
  readonly #work: ChunkWork;
  readonly damaged: PackProblem[] = [];
  /** An index named them. */
  readonly gone: PackProblem[] = [];

  constructor(
    context: RepositoryContext,
    index: ChunkIndex,
    options: PackVerdictOptions,
    onPack: () => void = () => undefined,
  ) {
    this.#onPack = onPack;
    this.#context = context;
    this.#index = index;
    this.#options = options;
    this.#work = context.workers.begin();
  }

  /** Looks at packs that were not looked at yet, several at once. */
  async look(numbers: readonly number[]): Promise<void> {
    const unknown = [...new Set(numbers)].filter((number) => !this.#good.has(number)).values();
    const run = new Run(this.#options.signal);
    const lane = async (): Promise<void> => {
      for (const number of unknown) {
        run.signal.throwIfAborted();
        await this.#settle(number);
      }
    };
    const count = this.#options.data ? looksMax.data : looksMax.size;
    const lanes = Array.from({ length: count }, () => lane().catch((error: unknown) => run.fail(error)));
    await run.unlessStopped(Promise.all(lanes));
    run.signal.throwIfAborted();
  }

  async isGood(pack: number, slot: number): Promise<boolean> {
    if (!this.#good.has(pack)) await this.#settle(pack);
    const slots = this.#good.get(pack);
    return slots === null || slots?.has(slot) === true;
  }

  async #settle(pack: number): Promise<void> {
    this.#good.set(pack, await this.#look(pack));
    this.#onPack();
  }

  async #look(number: number): Promise<ReadonlySet<number> | null> {
    const { id, sizeBytes } = this.#index.pack(number);
    const { backend } = this.#context;
    const name = packName(id);
    if (!this.#options.data) {
      const there = await backend.size(name, this.#options);
      if (there === null) return this.#gone(id);
      return there === sizeBytes ? null : this.#condemn(id, `it has ${there} bytes`);
    }
    const { compared } = this.#options;
    if (compared?.has(name) === true) return null;
    try {
      const bytes = await readWhole(this.#context, name, packBytesMax, this.#options);
      if (bytes === null) return this.#gone(id);
      const run = this.#work.run.bind(this.#work);
      await checkWholePack(bytes, id, this.#context.namer, this.#context, run);
      compared?.add(name);
      return null;
    } catch (error) {
      if (!(error instanceof RepositoryError)) throw error;
      await this.#condemn(id, messageOf(error));
      return this.#readableSlots(number);
    }
  }

  /** Of a damaged pack, the chunks that can be read all the same. */
  async #readableSlots(number: number): Promise<ReadonlySet<number>> {
    const reader = new ChunkReader(this.#context, this.#index);
    const slots = new Set<number>();
    for (const place of this.#index.placesOf(number)) {
      try {
        await reader.readPlace(place, place.entry.domain, this.#options);
        slots.add(place.entry.slot);
      } catch (error) {
        if (!(error instanceof RepositoryError)) throw error;
      }
    }
    return slots;
  }

  #gone(id: Buffer): ReadonlySet<number> {
    this.gone.push({ id, reason: 'it is gone' });
    return new Set();
  }

  async #condemn(id: Buffer, reason: string): Promise<ReadonlySet<number>> {
    this.damaged.push({ id, reason });
    await this.#options.onDamagedPack?.({ id, reason });
    return new Set();
  }
}
