import type { Backend, CallOptions } from '../backends/backend.ts';
import { StorageError } from '../errors.ts';
import { RepositoryError } from './errors.ts';
import { configBytesMax } from './limits.ts';
import { createOnce, type RepositoryContext } from './objects.ts';
import { configCopyName, parseConfig, type UnprovedConfig } from './repositoryConfig.ts';

/*
 * Each revision of the configuration is kept twice (docs/FORMAT.md, "Configuration"): without it nothing could be
 * opened. Copies are created, never changed; where one is damaged a repair adds the next.
 */

/** Of which each revision has as many that are whole. */
const copiesWanted = 2;
/** So many are looked for. */
const copiesMax = 16;

/** Whether there is a revision, in any copy: one that was lost must not be made anew over the other. */
export async function hasConfig(backend: Backend, revision: number, call: CallOptions): Promise<boolean> {
  for (let copy = 1; copy <= copiesWanted; copy++)
    if ((await backend.size(configCopyName(revision, copy), call)) !== null) return true;
  return false;
}

/** Creates a revision, which counts from its first copy on. */
export async function publishConfig(
  backend: Backend,
  revision: number,
  bytes: Buffer,
  call: CallOptions,
): Promise<'created' | 'same' | 'taken'> {
  const created = await createOnce(backend, configCopyName(revision, 1), [bytes], call);
  if (created === 'taken') return created;
  try {
    await createOnce(backend, configCopyName(revision, 2), [bytes], call);
  } catch (error) {
    // The revision is there: to fail now would say that it is not. A repair makes the copy.
    if (!(error instanceof StorageError)) throw error;
  }
  return created;
}

/**
 * The newest revision, in each of its copies that could be one; none where there is no repository. Which of them is
 * authentic only keys can tell. Rejects with REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW when it has no such copy; what
 * stands in earlier revisions does not matter any more.
 */
export async function readConfig(backend: Backend, call: CallOptions): Promise<readonly UnprovedConfig[]> {
  let newest: readonly UnprovedConfig[] = [];
  let problem: RepositoryError | null | undefined;
  for (let revision = 1; ; revision++) {
    const copies = await readCopies(backend, revision, call);
    if (copies.length === 0) {
      if (newest.length === 0 && problem) throw problem;
      return newest;
    }
    newest = copies.flatMap(({ config, bytes }, place) =>
      // One that says the same is no other candidate.
      config === null || copies.slice(0, place).some((one) => one.bytes.equals(bytes)) ? [] : [config],
    );
    // One that asks for more than this program knows is obeyed, unless its copy proves that it is damaged.
    problem = copies[0]?.problem;
  }
}

/** A copy of a configuration that is there. */
interface ConfigCopy {
  readonly name: string;
  readonly bytes: Buffer;
  readonly config: UnprovedConfig | null;
  /** Why it is none. */
  readonly problem: RepositoryError | null;
}

/** Every copy of a revision that is there. One may be missing before the others. */
async function readCopies(
  backend: Backend,
  revision: number,
  call: CallOptions,
): Promise<readonly ConfigCopy[]> {
  const copies: ConfigCopy[] = [];
  for (let copy = 1; copy <= copiesMax; copy++) {
    const name = configCopyName(revision, copy);
    const range = { offsetBytes: 0, lengthBytes: configBytesMax + 1 };
    const bytes = await backend.read(name, { ...call, range });
    if (bytes !== null) copies.push({ name, bytes, ...parsed(bytes, revision) });
    else if (copy >= copiesWanted) break;
  }
  return copies;
}

function parsed(bytes: Buffer, revision: number): Pick<ConfigCopy, 'config' | 'problem'> {
  try {
    return { config: parseConfig(bytes, revision), problem: null };
  } catch (error) {
    if (!(error instanceof RepositoryError)) throw error;
    return { config: null, problem: error };
  }
}

/** A copy that is wanted of a revision that has too few. */
export interface WantedCopy {
  readonly name: string;
  readonly reason: string;
  readonly bytes: Buffer;
}

/** Copies of the configuration that are missing or damaged, and what belongs into new ones. */
export async function wantedCopies(
  { backend, keys }: RepositoryContext,
  call: CallOptions,
): Promise<readonly WantedCopy[]> {
  const wanted: WantedCopy[] = [];
  for (let revision = 1; ; revision++) {
    const copies = await readCopies(backend, revision, call);
    if (copies.length === 0) return wanted;
    const good = copies.filter(({ config }) => {
      try {
        return config?.prove(keys) !== undefined;
      } catch (error) {
        if (error instanceof RepositoryError) return false;
        throw error;
      }
    });
    const [first] = good;
    if (first === undefined) continue;
    const names = new Set(copies.map(({ name }) => name));
    for (let copy = 1, missing = copiesWanted - good.length; missing > 0 && copy <= copiesMax; copy++) {
      const name = configCopyName(revision, copy);
      if (names.has(name)) continue;
      const damagedNames = copies.filter((one) => !good.includes(one)).map((one) => one.name);
      const reason = damagedNames.length > 0 ? `${damagedNames.join(', ')}: damaged` : 'it is missing';
      wanted.push({ name, reason, bytes: first.bytes });
      missing -= 1;
    }
  }
}
