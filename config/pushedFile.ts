import { createHash } from 'node:crypto';
import { chmod, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { isErrno, messageOf } from '../common/errors.ts';
import { fsyncDirectory, isTemporaryName, makeDirectoryDurable, writeFileDurable } from '../common/files.ts';

const formatVersion = 1;
const fileName = 'pushed.json';

const keptSchema = z.strictObject({
  /** Grows with each push. */
  revision: z.int().positive(),
  /** JSON; null: what was pushed was taken away again. */
  document: z.string().nullable(),
  /** `controller:NAME`, or `socket:uid N`. */
  setBy: z.string(),
  setAt: z.iso.datetime(),
});

const fileSchema = z.object({
  formatVersion: z.int(),
  /** SHA-256 of the parts of `content`, hexadecimal. */
  sha256: z.string(),
  content: z.unknown(),
});

/** What a host keeps of what was pushed to it last. */
export type KeptPolicies = z.output<typeof keptSchema>;

/** What was found in the place of pushed policies. */
export interface ReadPolicies {
  /** null: nothing was pushed yet, or it cannot be read. */
  readonly kept: KeptPolicies | null;
  /** Why it cannot be read; null: it can. */
  readonly problem: string | null;
}

/** Where a host keeps what was pushed to it. */
export function pushedDirectory(stateDir: string): string {
  return join(stateDir, 'policies');
}

/**
 * The file in which a host keeps the policies that were pushed to it, so that they hold while nobody pushes. It is
 * replaced as a whole, carries a sum of its content, and only its owner can read it.
 */
export class PushedFile {
  readonly directory: string;
  readonly path: string;

  constructor(stateDir: string) {
    this.directory = pushedDirectory(stateDir);
    this.path = join(this.directory, fileName);
  }

  /** What is kept. Never throws: what cannot be read keeps nobody from working by his own files. */
  async read(): Promise<ReadPolicies> {
    try {
      return { kept: keptIn(await readFile(this.path, 'utf8')), problem: null };
    } catch (error) {
      if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return { kept: null, problem: null };
      return { kept: null, problem: `${this.path} cannot be used: ${messageOf(error)}` };
    }
  }

  /** Keeps this from now on, also after a power loss. Throws the system's errors; what was kept before stays then. */
  async write(kept: KeptPolicies): Promise<void> {
    await this.makeDirectory();
    const content = keptSchema.parse(kept);
    await writeFileDurable(
      this.path,
      `${JSON.stringify({ formatVersion, sha256: sumOf(content), content })}\n`,
    );
  }

  /** Forgets what was pushed, and its revision. */
  async remove(): Promise<void> {
    try {
      await rm(this.path);
    } catch (error) {
      if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return;
      throw error;
    }
    await fsyncDirectory(this.directory);
  }

  /** Forgets what a controller has pushed, and its revision; what root has set on the host stays. @returns what was there */
  async removeControllers(): Promise<ReadPolicies | null> {
    const read = await this.read();
    const { kept, problem } = read;
    if (kept === null && problem === null) return null;
    if (kept !== null && !kept.setBy.startsWith('controller:')) return null;
    await this.remove();
    return read;
  }

  /** Makes its directory, for its owner alone. */
  async makeDirectory(): Promise<void> {
    await makeDirectoryDurable(this.directory, 0o700);
    await chmod(this.directory, 0o700);
  }

  /** Removes what a process that was killed has left of a file; only for the one that writes. */
  async sweep(): Promise<void> {
    for (const name of await readdir(this.directory))
      if (isTemporaryName(name)) await rm(join(this.directory, name), { force: true });
  }
}

function keptIn(text: string): KeptPolicies {
  const { formatVersion: version, sha256, content } = parse(text);
  if (version !== formatVersion)
    throw new Error(`it is of version ${version}, and this program reads ${formatVersion}`);
  const kept = keptSchema.safeParse(content);
  if (!kept.success || sha256 !== sumOf(kept.data)) throw damaged();
  return kept.data;
}

function parse(text: string): z.output<typeof fileSchema> {
  try {
    return fileSchema.parse(JSON.parse(text));
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError) throw damaged(error);
    throw error;
  }
}

function damaged(cause?: unknown): Error {
  return new Error('it is damaged', { cause });
}

function sumOf({ revision, document, setBy, setAt }: KeptPolicies): string {
  return createHash('sha256')
    .update(JSON.stringify([revision, document, setBy, setAt]))
    .digest('hex');
}
