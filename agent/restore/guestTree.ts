/*
 * The files of a guest as who takes some out sees them. Names are whatever bytes the guest has written, one character
 * for each (latin1).
 */

/** `nameless`: its name is none that can be written, or that could be read. */
export type GuestFileKind = 'file' | 'directory' | 'link' | 'special' | 'nameless';

/** A file of a guest. Everything about it was said by the guest. */
export interface GuestFile {
  readonly name: string;
  readonly kind: GuestFileKind;
  readonly inode: number;
  readonly uid: number;
  readonly gid: number;
  /** Permission bits (07777). */
  readonly mode: number;
  readonly sizeBytes: number;
}

/** What only the file itself says. */
export interface GuestFileDetails {
  readonly modifiedAt: Date;
  /** Where a symbolic link leads, at most 4095 bytes; `null` for anything else. */
  readonly leadsTo: string | null;
}

/** A file system of a guest, read-only. */
export interface GuestTree {
  root(): Promise<GuestFile>;
  /** What is in a directory, without `.` and `..`. @throws RestoreError FILE_UNREADABLE */
  list(directory: GuestFile): Promise<readonly GuestFile[]>;
  /** What a directory has by a name; `null` for nothing. @throws RestoreError FILE_UNREADABLE */
  find(directory: GuestFile, name: string): Promise<GuestFile | null>;
  /** @throws RestoreError FILE_UNREADABLE */
  details(file: GuestFile): Promise<GuestFileDetails>;
  /** The bytes of a regular file, all of them. @throws RestoreError FILE_UNREADABLE in the middle */
  content(file: GuestFile): AsyncIterable<Buffer>;
}

/** As many as Linux follows, path_resolution(7). */
export const linksMax = 40;

/**
 * Finds a file by its path from the root of the guest's file system. Links on the way are followed inside it, the last
 * name is not; `null` when there is no such file.
 */
export async function findGuestFile(tree: GuestTree, path: string): Promise<GuestFile | null> {
  const root = await tree.root();
  let names = componentsOf(path);
  const way: GuestFile[] = [root];
  let links = 0;
  for (let at = 0; at < names.length; at += 1) {
    const name = names[at];
    const here = way.at(-1) ?? root;
    if (name === '..') {
      if (way.length > 1) way.pop();
      continue;
    }
    if (here.kind !== 'directory') return null;
    const found = name === undefined ? null : await tree.find(here, name);
    if (found === null) return null;
    if (found.kind !== 'link' || at === names.length - 1) {
      way.push(found);
      continue;
    }
    links += 1;
    const { leadsTo } = await tree.details(found);
    if (leadsTo === null || links > linksMax) return null;
    if (leadsTo.startsWith('/')) way.length = 1;
    names = [...componentsOf(leadsTo), ...names.slice(at + 1)];
    at = -1;
  }
  return way.at(-1) ?? root;
}

/** The names of a path; what means nothing is left out. */
export function componentsOf(path: string): readonly string[] {
  return path.split('/').filter((name) => name !== '' && name !== '.');
}

/** Paths of a guest are bytes: one character for each. */
export function bytesOfPath(path: string): string {
  return Buffer.from(path, 'utf8').toString('latin1');
}

/** A path of a guest as people read it, with nothing in it that speaks to a terminal. */
export function shownPath(path: string): string {
  return Buffer.from(path, 'latin1')
    .toString('utf8')
    .replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '?');
}
