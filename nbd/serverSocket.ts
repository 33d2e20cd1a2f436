import { randomUUID } from 'node:crypto';
import { chmod, chown, lstat, mkdtemp, open, rename, rm, unlink } from 'node:fs/promises';
import { connect } from 'node:net';
import type { Server } from 'node:net';
import { dirname, join } from 'node:path';
import { isErrno, messageOf } from '../common/errors.ts';
import { NbdError } from './errors.ts';

/** `sun_path` has 108 bytes, one of them for the end (unix(7)). */
const pathBytesMax = 107;
const socketMode = 0o600;

export interface SocketOwner {
  readonly uid: number;
  readonly gid: number;
}

/** A socket in its place, to be taken away by who has put it there. */
export interface PlacedSocket {
  readonly path: string;
  readonly inode: number;
}

/**
 * Lets a server listen at a path, to which nobody but its owner can ever connect: the socket is made in a directory
 * that only we may enter, given its mode and owner there, and then put into its place. A socket that nobody listens at
 * any more is replaced.
 *
 * @param owner who may connect beside root; this process's user unless told
 * @throws NBD_SOCKET_UNUSABLE
 */
export async function listenPrivately(
  server: Server,
  path: string,
  owner?: SocketOwner,
): Promise<PlacedSocket> {
  const bytes = Buffer.byteLength(path);
  if (bytes > pathBytesMax)
    throw new NbdError(
      'NBD_SOCKET_UNUSABLE',
      `${path} has ${bytes} bytes, a socket's path ${pathBytesMax} at most`,
      {
        hint: 'use a directory with a shorter name, such as one under /run',
      },
    );
  try {
    await requireFree(path);
    return await place(server, path, owner);
  } catch (error) {
    if (error instanceof NbdError) throw error;
    throw new NbdError('NBD_SOCKET_UNUSABLE', `cannot listen at ${path}: ${messageOf(error)}`, {
      cause: error,
      hint: `ls -ld ${dirname(path)}`,
    });
  }
}

/** Takes a socket away, unless it is another one by now. */
export async function removeSocket({ path, inode }: PlacedSocket): Promise<void> {
  try {
    if ((await lstat(path)).ino === inode) await unlink(path);
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
  }
}

async function place(server: Server, path: string, owner: SocketOwner | undefined): Promise<PlacedSocket> {
  const directory = await mkdtemp(join(dirname(path), '.nbd-'));
  try {
    // A name of its own: libuv takes it away when the server closes, and the number of the handle is another's then.
    const name = randomUUID();
    const made = join(directory, name);
    const handle = await open(directory, 'r');
    try {
      // The longer name of the directory must not count: a socket can be bound through any name of its place.
      await listening(server, `/proc/self/fd/${handle.fd}/${name}`);
    } finally {
      await handle.close();
    }
    await chmod(made, socketMode);
    if (owner !== undefined) await chown(made, owner.uid, owner.gid);
    const { ino: inode } = await lstat(made);
    await rename(made, path);
    return { path, inode };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function listening(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

async function requireFree(path: string): Promise<void> {
  const taken = (why: string): NbdError =>
    new NbdError('NBD_SOCKET_UNUSABLE', `${path} is taken: ${why}`, { hint: `ss -xlp | grep ${path}` });
  try {
    if (!(await lstat(path)).isSocket()) throw taken('it is no socket');
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return;
    throw error;
  }
  if (await answers(path)) throw taken('somebody listens there');
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const connection = connect(path);
    const end = (is: boolean): void => {
      connection.destroy();
      resolve(is);
    };
    connection.once('connect', () => end(true));
    // EAGAIN: so many wait already that there is somebody who makes them wait.
    connection.once('error', (error) => end(isErrno(error, 'EAGAIN')));
  });
}
