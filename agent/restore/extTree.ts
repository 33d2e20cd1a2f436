import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { buffer } from 'node:stream/consumers';
import { isErrno } from '../../common/errors.ts';
import { RestoreError } from './errors.ts';
import type { GuestFile, GuestFileDetails, GuestFileKind, GuestTree } from './guestTree.ts';

/*
 * ext2, ext3 and ext4 as e2fsprogs read them, in children that may do nothing but that: what a guest has written is
 * never mounted by the host's kernel, nor parsed by a process that has rights.
 */

/** Nobody: the owner of no file. */
export const readerUser = { uid: 65534, gid: 65534 };
const answerMs = 60_000;
/** Of a directory: some hundred thousand names. */
const answerBytesMax = 32 * 1024 * 1024;
/** PATH_MAX of Linux without the final zero: a longer one leads nowhere in the guest either. */
const targetBytesMax = 4095;
const rootInode = 2;
const environment = { PATH: '/usr/sbin:/sbin:/usr/bin:/bin', LC_ALL: 'C' };

export interface ExtPlace {
  /** Directory in which the file is; who may not pass through the ones above it can still read there. */
  readonly directory: string;
  /** The file system as a file that the user of the children may read and write. */
  readonly file: string;
  readonly signal: AbortSignal;
}

/** The files of an ext2, ext3 or ext4 file system. */
export class ExtTree implements GuestTree {
  readonly #place: ExtPlace;

  private constructor(place: ExtPlace) {
    this.#place = place;
  }

  /**
   * Opens a file system. What its journal holds is brought into it first, as a mount would: the backup of a machine
   * that ran is that of a file system in use.
   * @throws RestoreError FILE_SYSTEM_UNSUPPORTED
   */
  static async open(place: ExtPlace): Promise<ExtTree> {
    const { code, said } = await run(place, 'e2fsck', ['-E', 'journal_only', '-y', place.file]);
    // 0: nothing to do; 1: something was corrected, e2fsck(8).
    if (code === 0 || code === 1) return new ExtTree(place);
    throw new RestoreError(
      'FILE_SYSTEM_UNSUPPORTED',
      `the journal of the file system cannot be used: ${said}`,
      {
        hint: 'choose others with --volume and --partition; stillpoint storage mount BACKUP DIR gives the whole volume',
      },
    );
  }

  root(): Promise<GuestFile> {
    const root = { name: '', kind: 'directory', inode: rootInode, uid: 0, gid: 0, mode: 0o755, sizeBytes: 0 };
    return Promise.resolve({ ...root, kind: 'directory' as const });
  }

  async list(directory: GuestFile): Promise<readonly GuestFile[]> {
    const text = (await this.#ask(`ls -p <${directory.inode}>`)).toString('latin1');
    return text
      .split('\n')
      .filter((line) => line !== '')
      .map(parseEntry)
      .filter(({ name }) => name !== '.' && name !== '..');
  }

  async find(directory: GuestFile, name: string): Promise<GuestFile | null> {
    return (await this.list(directory)).find((file) => file.name === name) ?? null;
  }

  async details({ inode, kind }: GuestFile): Promise<GuestFileDetails> {
    const text = (await this.#ask(`stat <${inode}>`)).toString('latin1');
    const [, seconds = '0', extra = '0'] = /^ ?mtime: 0x([0-9a-f]+)(?::([0-9a-f]+))?/m.exec(text) ?? [];
    // The lowest two bits of the second word continue the seconds, which count from 1901 on.
    const epoch = (Number.parseInt(extra, 16) & 3) * 2 ** 32;
    const modifiedAt = new Date(((Number.parseInt(seconds, 16) | 0) + epoch) * 1000);
    return { modifiedAt, leadsTo: kind === 'link' ? await this.#target(inode, text) : null };
  }

  /** A short target stands in the inode, a longer one in a block. */
  async #target(inode: number, text: string): Promise<string> {
    const mark = 'Fast link dest: "';
    const at = text.indexOf(mark);
    if (at === -1) return (await this.#ask(`cat <${inode}>`, targetBytesMax)).toString('latin1');
    return text.slice(at + mark.length, text.lastIndexOf('"'));
  }

  async *content({ inode, sizeBytes, name }: GuestFile): AsyncGenerator<Buffer> {
    const child = this.#start(`cat <${inode}>`);
    const said = buffer(child.stderr);
    const ended = ending(child);
    let bytes = 0;
    try {
      for await (const chunk of child.stdout) {
        const piece: Buffer = chunk;
        bytes += piece.length;
        yield piece;
      }
    } finally {
      child.kill('SIGKILL');
      await ended;
    }
    this.#place.signal.throwIfAborted();
    if (bytes !== sizeBytes)
      throw unreadable(name, `${bytes} of ${sizeBytes} bytes; ${withoutBanner(await said)}`);
  }

  async #ask(command: string, bytesMax = answerBytesMax): Promise<Buffer> {
    const args = ['-R', command, this.#place.file];
    const { code, output, said } = await run(this.#place, 'debugfs', args, bytesMax);
    // debugfs ends with 0 whatever happens.
    if (code !== 0 || said !== '') throw unreadable(command, said);
    return output;
  }

  #start(command: string) {
    const { directory, file, signal } = this.#place;
    return spawn('debugfs', ['-R', command, file], {
      ...asReader(),
      cwd: directory,
      env: environment,
      signal,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  }
}

const kinds: ReadonlyMap<number, GuestFileKind> = new Map([
  [0o100000, 'file'],
  [0o040000, 'directory'],
  [0o120000, 'link'],
]);

/** A line of `ls -p`: `/INODE/MODE/UID/GID/NAME/SIZE/`. A name with a separator or a newline in it makes none. */
function parseEntry(line: string): GuestFile {
  const fields = /^\/(\d+)\/([0-7]{6})\/(-?\d+)\/(-?\d+)\/([^/]*)\/(\d*)\/$/.exec(line);
  if (fields === null)
    return { name: line, kind: 'nameless', inode: 0, uid: 0, gid: 0, mode: 0, sizeBytes: 0 };
  const [, inode, mode = '', uid, gid, name = '', size] = fields;
  const bits = Number.parseInt(mode, 8);
  return {
    name,
    kind: kinds.get(bits & 0o170000) ?? 'special',
    inode: Number(inode),
    uid: Number(uid) >>> 0,
    gid: Number(gid) >>> 0,
    mode: bits & 0o7777,
    sizeBytes: Number(size),
  };
}

interface Answer {
  readonly code: number | null;
  readonly output: Buffer;
  /** What it complained of. */
  readonly said: string;
}

async function run(
  { directory, signal }: ExtPlace,
  program: string,
  args: readonly string[],
  bytesMax = answerBytesMax,
): Promise<Answer> {
  const child = spawn(program, args, {
    ...asReader(),
    cwd: directory,
    env: environment,
    signal,
    timeout: answerMs,
    killSignal: 'SIGKILL',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const ended = ending(child);
  try {
    const closed = once(child, 'close');
    const [output, said] = await Promise.all([
      bounded(child.stdout, args, bytesMax),
      buffer(child.stderr),
      closed,
    ]);
    return { code: child.exitCode, output, said: withoutBanner(said) };
  } catch (error) {
    child.kill('SIGKILL');
    await ended;
    signal.throwIfAborted();
    if (!isErrno(error, 'ENOENT')) throw error;
    throw new RestoreError('FILE_SYSTEM_UNSUPPORTED', `${program} is not on this host`, {
      cause: error,
      hint: 'apt-get install e2fsprogs',
    });
  }
}

/**
 * When a child is gone and has let go of the file. Never rejects: an abort comes while whoever reads it waits for
 * something else, and nobody would be there to hear.
 */
function ending(child: ChildProcess): Promise<void> {
  return new Promise((done) => {
    child.on('error', () => undefined).once('close', () => done());
  });
}

async function bounded(
  stream: AsyncIterable<Buffer>,
  args: readonly string[],
  bytesMax: number,
): Promise<Buffer> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of stream) {
    bytes += piece.length;
    if (bytes > bytesMax) throw unreadable(args.join(' '), `the answer has more than ${bytesMax} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

/** Who is not root has no rights to lose. */
function asReader(): { readonly uid?: number; readonly gid?: number } {
  return process.geteuid?.() === 0 ? readerUser : {};
}

function withoutBanner(said: Buffer): string {
  return said
    .toString('latin1')
    .split('\n')
    .filter((line) => line !== '' && !/^(debugfs|e2fsck) \d/.test(line))
    .join('; ')
    .slice(0, 300);
}

function unreadable(what: string, why: string): RestoreError {
  return new RestoreError('FILE_UNREADABLE', `${printable(what)} cannot be read: ${printable(why)}`, {
    hint: 'stillpoint verify --data BACKUP says whether the backup is as it was stored; then the file system of the guest is damaged',
  });
}

/** What a guest has named must not speak to the terminal. */
function printable(text: string): string {
  return text.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 300);
}
