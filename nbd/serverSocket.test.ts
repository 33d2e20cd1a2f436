import { lstat, mkdir, readdir, rename, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { NbdClient } from './client.ts';
import { workDirectory } from './fixture.ts';
import { ScriptedSource } from './scriptedSource.ts';
import { NbdServer } from './server.ts';

const exports = new Map([['vda', new ScriptedSource(Buffer.from('content'))]]);
const onError = (): void => {};
const read = async (socketPath: string): Promise<string> => {
  await using client = await NbdClient.connect({ socketPath, exportName: 'vda', answerMs: 20_000 });
  return (await client.read(0, 7)).toString();
};

void t.test('a socket is for its owner only, whatever the umask, and leaves nothing behind', async (t) => {
  const directory = await workDirectory(t);
  const socketPath = join(directory, 'socket');
  const umask = process.umask(0);
  t.teardown(() => void process.umask(umask));
  {
    await using server = await NbdServer.listen({ socketPath, exports, onError });
    t.equal((await lstat(socketPath)).mode & 0o7777, 0o600);
    t.same(await readdir(directory), ['socket']);
    t.equal(server.socketPath, socketPath);
    t.equal(await read(socketPath), 'content');
  }
  t.same(await readdir(directory), []);
});

const skip = process.getuid?.() === 0 ? false : 'only root can give a file away';

void t.test('a socket may be given to another user', { skip }, async (t) => {
  const socketPath = join(await workDirectory(t), 'socket');
  await using _ = await NbdServer.listen({
    socketPath,
    exports,
    onError,
    owner: { uid: 65_534, gid: 65_533 },
  });
  const { uid, gid, mode } = await lstat(socketPath);
  t.same([uid, gid, mode & 0o7777], [65_534, 65_533, 0o600]);
});

void t.test('a path of 107 bytes is enough, one of 108 is refused by its length', async (t) => {
  const directory = join(await workDirectory(t), 'd');
  await mkdir(directory);
  const path = (bytes: number): string => join(directory, 's'.repeat(bytes - directory.length - 1));
  {
    await using _ = await NbdServer.listen({ socketPath: path(107), exports, onError });
    t.equal(await read(path(107)), 'content');
  }
  const expected = { code: 'NBD_SOCKET_UNUSABLE', message: /has 108 bytes, a socket's path 107/ };
  await t.rejects(NbdServer.listen({ socketPath: path(108), exports, onError }), expected);
  t.same(await readdir(directory), []);
  // A long directory leaves no room for a longer name beside it.
  const deep = join(directory, 'd'.repeat(103 - directory.length));
  await mkdir(deep);
  await using _ = await NbdServer.listen({ socketPath: join(deep, 's'), exports, onError });
  t.equal(await read(join(deep, 's')), 'content');
});

void t.test('a socket that nobody serves any more is replaced, anything else is not', async (t) => {
  const directory = await workDirectory(t);
  const socketPath = join(directory, 'socket');
  const script = `require('net').createServer().listen(${JSON.stringify(socketPath)}, () => process.kill(process.pid, 9))`;
  await execa(process.execPath, ['-e', script], { reject: false });
  t.ok((await lstat(socketPath)).isSocket(), 'left by a process that was killed');
  await using first = await NbdServer.listen({ socketPath, exports, onError });
  t.equal(await read(socketPath), 'content');
  const taken = { code: 'NBD_SOCKET_UNUSABLE', message: /is taken: somebody listens there/ };
  await t.rejects(NbdServer.listen({ socketPath, exports, onError }), taken);
  t.equal(await read(socketPath), 'content', 'who was there goes on');
  const file = join(directory, 'file');
  await writeFile(file, 'precious');
  const link = join(directory, 'link');
  await symlink(socketPath, link);
  for (const path of [file, link])
    await t.rejects(NbdServer.listen({ socketPath: path, exports, onError }), {
      code: 'NBD_SOCKET_UNUSABLE',
      message: /no socket/,
    });
  await t.rejects(NbdServer.listen({ socketPath: join(directory, 'none/socket'), exports, onError }), {
    code: 'NBD_SOCKET_UNUSABLE',
    message: /ENOENT/,
  });
  t.same((await readdir(directory)).toSorted(), ['file', 'link', 'socket']);
  t.equal(first.connections, 0);
});

void t.test('a server takes its own socket away, not that of another one', async (t) => {
  const directory = await workDirectory(t);
  const socketPath = join(directory, 'socket');
  const first = await NbdServer.listen({ socketPath, exports, onError });
  await rename(socketPath, join(directory, 'aside'));
  const other = createServer();
  await new Promise<void>((resolve) => void other.listen(socketPath, resolve));
  t.teardown(() => void other.close());
  await first[Symbol.asyncDispose]();
  t.ok((await lstat(socketPath)).isSocket());
});

void t.test('limits and names that are none are refused', async (t) => {
  const socketPath = join(await workDirectory(t), 'socket');
  for (const limits of [
    { requests: 0 },
    { connections: -1 },
    { heldBytes: Number.NaN },
    { handshakeMs: 0.5 },
  ])
    await t.rejects(NbdServer.listen({ socketPath, exports, onError, limits }), RangeError);
  const long = new Map([['x'.repeat(4097), new ScriptedSource(Buffer.alloc(1))]]);
  await t.rejects(NbdServer.listen({ socketPath, exports: long, onError }), RangeError);
});
