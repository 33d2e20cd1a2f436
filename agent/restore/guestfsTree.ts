import type { FileHandle } from 'node:fs/promises';
import { RestoreError } from './errors.ts';
import type { GuestFile, GuestFileDetails, GuestFileKind, GuestTree } from './guestTree.ts';

/** What can be asked about files; a `Guestfish` is it. */
export interface GuestfishCommands {
  ask(command: string, args: readonly string[], options?: { readonly bytesMax?: number }): Promise<Buffer>;
}

/** A file into which names are written by who may write nothing else, and which is held open. */
export interface NamesFile {
  readonly path: string;
  readonly handle: FileHandle;
}

/** Of a directory: some hundred thousand names. */
const namesBytesMax = 32 * 1024 * 1024;
/** A message of the daemon has at most 4 MiB. */
const pieceBytes = 2 * 1024 * 1024;
const statBytesMax = 4096;
/** PATH_MAX of Linux without the final zero. */
const targetBytesMax = 4095;

interface Known {
  /** From the root of what is mounted, in bytes. */
  readonly path: string;
  readonly modifiedAt: Date;
}

/**
 * The files of a file system that libguestfs has mounted, read-only, in a virtual machine of its own. Every file is
 * asked for by a path that only names of directories lead to: no link is ever followed there.
 */
export class GuestfsTree implements GuestTree {
  readonly #guestfish: GuestfishCommands;
  readonly #mountPoint: string;
  readonly #names: NamesFile;
  readonly #known = new WeakMap<GuestFile, Known>();
  /** A number for each directory, by device and inode: subvolumes of btrfs have the same inodes. */
  readonly #directories = new Map<string, number>();
  #files = 0;

  /** @param mountPoint where it is mounted there, such as `/1` */
  constructor(guestfish: GuestfishCommands, mountPoint: string, names: NamesFile) {
    this.#guestfish = guestfish;
    this.#mountPoint = mountPoint;
    this.#names = names;
  }

  root(): Promise<GuestFile> {
    return this.#look('', this.#mountPoint);
  }

  async list(directory: GuestFile): Promise<readonly GuestFile[]> {
    const { path } = this.#of(directory);
    const files: GuestFile[] = [];
    for (const name of await this.#namesIn(path)) files.push(await this.#lookOrName(name, path));
    return files;
  }

  async find(directory: GuestFile, name: string): Promise<GuestFile | null> {
    try {
      return await this.#look(name, `${this.#of(directory).path}/${name}`);
    } catch (error) {
      if (error instanceof RestoreError && /No such file or directory/.test(error.message)) return null;
      throw error;
    }
  }

  async details(file: GuestFile): Promise<GuestFileDetails> {
    const { path, modifiedAt } = this.#of(file);
    if (file.kind !== 'link') return { modifiedAt, leadsTo: null };
    // It ends what it prints with a newline.
    const printed = await this.#guestfish.ask('readlink', [path], { bytesMax: targetBytesMax + 1 });
    return { modifiedAt, leadsTo: printed.toString('latin1', 0, Math.max(0, printed.length - 1)) };
  }

  async *content(file: GuestFile): AsyncGenerator<Buffer> {
    const { path } = this.#of(file);
    for (let at = 0; at < file.sizeBytes; ) {
      const wanted = Math.min(pieceBytes, file.sizeBytes - at);
      const args = [path, String(wanted), String(at)];
      const piece = await this.#guestfish.ask('pread', args, { bytesMax: wanted });
      if (piece.length === 0 || piece.length > wanted)
        throw unreadable(file.name, `${at + piece.length} of ${file.sizeBytes} bytes`);
      at += piece.length;
      yield piece;
    }
  }

  async #namesIn(path: string): Promise<readonly string[]> {
    const { handle, path: file } = this.#names;
    await handle.truncate(0);
    await this.#guestfish.ask('ls0', [path, file]);
    const { size } = await handle.stat();
    if (size > namesBytesMax) throw unreadable(path, `its names have more than ${namesBytesMax} bytes`);
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(size), 0, size, 0);
    return buffer
      .toString('latin1', 0, bytesRead)
      .split('\0')
      .filter((name) => name !== '' && name !== '.' && name !== '..');
  }

  /** One file that says nothing of itself hides no other. */
  async #lookOrName(name: string, directory: string): Promise<GuestFile> {
    try {
      return await this.#look(name, `${directory}/${name}`);
    } catch (error) {
      if (!(error instanceof RestoreError) || error.code !== 'FILE_UNREADABLE') throw error;
      return { name, kind: 'nameless', inode: 0, uid: 0, gid: 0, mode: 0, sizeBytes: 0 };
    }
  }

  async #look(name: string, path: string): Promise<GuestFile> {
    const answer = await this.#guestfish.ask('lstatns', [path], { bytesMax: statBytesMax });
    const said = parseStat(answer.toString('latin1'));
    if (said === null) throw unreadable(name, 'what it is was not said');
    const { device, inode, modifiedAt, ...about } = said;
    const file = { name, ...about, inode: this.#numberOf(about.kind, `${device}:${inode}`) };
    this.#known.set(file, { path, modifiedAt });
    return file;
  }

  #numberOf(kind: GuestFileKind, identity: string): number {
    const known = this.#directories.get(identity);
    if (known !== undefined) return known;
    this.#files += 1;
    if (kind === 'directory') this.#directories.set(identity, this.#files);
    return this.#files;
  }

  #of(file: GuestFile): Known {
    const known = this.#known.get(file);
    if (known === undefined) throw unreadable(file.name, 'it cannot be read');
    return known;
  }
}

const kinds: ReadonlyMap<number, GuestFileKind> = new Map([
  [0o100000, 'file'],
  [0o040000, 'directory'],
  [0o120000, 'link'],
]);

/** As `lstatns` prints it: one `st_NAME: NUMBER` a line. */
function parseStat(text: string) {
  const fields = new Map<string, string>();
  for (const [, name = '', value = ''] of text.matchAll(/^st_(\w+): (-?\d{1,20})$/gm))
    fields.set(name, value);
  const number = (name: string): number => Number(fields.get(name) ?? Number.NaN);
  const bits = number('mode');
  const [sizeBytes, seconds] = [number('size'), number('mtime_sec')];
  if (!Number.isSafeInteger(bits) || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) return null;
  const modifiedAt = new Date(seconds * 1000);
  return {
    kind: kinds.get(bits & 0o170000) ?? 'special',
    device: fields.get('dev') ?? '',
    inode: fields.get('ino') ?? '',
    uid: number('uid') >>> 0,
    gid: number('gid') >>> 0,
    mode: bits & 0o7777,
    sizeBytes,
    // A time that no clock of ours can have is none.
    modifiedAt: Number.isNaN(modifiedAt.getTime()) ? new Date(0) : modifiedAt,
  };
}

function unreadable(name: string, why: string): RestoreError {
  return new RestoreError(
    'FILE_UNREADABLE',
    `${name.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 300)} cannot be read: ${why}`,
    {
      hint: 'stillpoint verify --data BACKUP says whether the backup is as it was stored; then the file system of the guest is damaged',
    },
  );
}
