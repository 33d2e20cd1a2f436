import { once } from 'node:events';
import type { Stats } from 'node:fs';
import { chmod, chown, lstat, mkdir, rename, rm, stat } from 'node:fs/promises';
import { connect, type Server } from 'node:net';
import { dirname } from 'node:path';
import { execa } from 'execa';
import { isErrno, messageOf } from '../../common/errors.ts';
import { ApiError } from './errors.ts';

/** Unix(7): the path of a socket has at most so many bytes. */
const pathBytesMax = 107;
/** A living service accepts at once, whatever else it does. */
const connectMs = 5000;
const groupLookupMs = 10_000;

/**
 * Has a server listen on a unix socket that only we and a group may use. What a dead service has left is replaced in one
 * rename: there is no moment at which somebody else could connect, or at which the socket of a living one is gone.
 * @param gid null: nobody but us
 * @throws ApiError SOCKET_UNUSABLE, SERVICE_RUNNING
 */
export async function listenAt(server: Server, path: string, gid: number | null): Promise<AsyncDisposable> {
  const made = `${path}.new`;
  if (Buffer.byteLength(made) > pathBytesMax)
    throw unusable(path, `it has more than ${pathBytesMax - 4} bytes`, 'name a shorter one in agent.socket');
  await requireUnused(path);
  try {
    await requireDirectory(dirname(path), path, gid !== null);
    await rm(made, { force: true });
    server.listen({ path: made });
    await once(server, 'listening');
    await chmod(made, gid === null ? 0o600 : 0o660);
    if (gid !== null) await chown(made, process.getuid?.() ?? 0, gid);
    const { ino } = await lstat(made);
    await rename(made, path);
    return { [Symbol.asyncDispose]: async () => removeOurs(path, ino) };
  } catch (error) {
    server.close();
    if (error instanceof ApiError) throw error;
    throw unusable(
      path,
      messageOf(error),
      'see agent.socket and agent.socketGroup in the configuration',
      error,
    );
  }
}

/** A socket at which somebody answers is not ours to replace. @throws ApiError SERVICE_RUNNING, SOCKET_UNUSABLE */
async function requireUnused(path: string): Promise<void> {
  const present = await statIfThere(path);
  if (present === undefined) return;
  // The system refuses a connection to a file as it refuses one to a socket at which nobody listens.
  if (!present.isSocket())
    throw unusable(path, 'it is there, and no socket', `ls -l ${path}; move it away, or name another path`);
  const socket = connect(path);
  try {
    await once(socket, 'connect', { signal: AbortSignal.timeout(connectMs) });
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ECONNREFUSED')) return;
    throw unusable(path, messageOf(error), `ls -l ${path}`, error);
  } finally {
    socket.destroy();
  }
  throw serviceRunning(`another process listens at ${path}`);
}

async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    return await lstat(path);
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return undefined;
    throw unusable(path, messageOf(error), `ls -ld ${dirname(path)}`, error);
  }
}

/** There is a service of this host already. */
export function serviceRunning(what: string): ApiError {
  return new ApiError('SERVICE_RUNNING', `the service of this host runs already: ${what}`, {
    hint: 'systemctl status stillpoint-agent; a second one on the same host needs agent.socket and agent.stateDir of its own',
  });
}

/** Who could put another socket in the place of ours would hear what is asked of us. */
async function requireDirectory(directory: string, path: string, isShared: boolean): Promise<void> {
  if ((await mkdir(directory, { recursive: true, mode: 0o755 })) !== undefined) await chmod(directory, 0o755);
  const { mode, uid } = await stat(directory);
  const isForeign = uid !== 0 && uid !== process.getuid?.();
  const isOpen = (mode & 0o002) !== 0 && (mode & 0o1000) === 0;
  // A command that came first may have made it for root alone.
  if (!isForeign && !isOpen && isShared && (mode & 0o055) !== 0o055) await chmod(directory, mode | 0o055);
  if (!isForeign && !isOpen) return;
  throw unusable(
    path,
    `somebody else may replace what is in ${directory}`,
    `chown root:root ${directory} && chmod 0755 ${directory}`,
  );
}

async function removeOurs(path: string, ino: number): Promise<void> {
  if ((await statIfThere(path))?.ino === ino) await rm(path, { force: true });
}

/** The number of a group that is named, or given by its number. @throws ApiError SOCKET_UNUSABLE */
export async function groupIdOf(group: string): Promise<number> {
  if (/^\d+$/.test(group)) return Number(group);
  // Groups may come from a directory of the network, which only the system knows how to ask.
  const { stdout, exitCode } = await execa('getent', ['group', group], {
    reject: false,
    timeout: groupLookupMs,
  });
  const [, , id = ''] = stdout.split(':');
  if (exitCode === 0 && /^\d+$/.test(id)) return Number(id);
  throw new ApiError('SOCKET_UNUSABLE', `there is no group ${group}, which agent.socketGroup names`, {
    hint: `groupadd --system ${group}`,
  });
}

function unusable(path: string, why: string, hint: string, cause?: unknown): ApiError {
  return new ApiError('SOCKET_UNUSABLE', `the socket ${path} cannot be made: ${why}`, { hint, cause });
}
