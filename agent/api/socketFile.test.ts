import { once } from 'node:events';
import { chmod, chown, lstat, mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { groupIdOf, listenAt } from './socketFile.ts';

async function place(): Promise<{ readonly directory: string } & AsyncDisposable> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-sock-'));
  return { directory, [Symbol.asyncDispose]: () => rm(directory, { recursive: true }) };
}

/** Somebody who connects and is let go. */
async function isAnswered(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

function server(): Server {
  return createServer((socket) => socket.destroy());
}

void t.test('the socket is ours and the group’s alone, in a directory that all may enter', async (t) => {
  await using at = await place();
  const path = join(at.directory, 'run', 'agent.sock');
  const listening = server();
  const file = await listenAt(listening, path, 27);
  const { mode, gid } = await stat(path);
  t.equal(mode & 0o777, 0o660);
  t.equal(gid, 27);
  t.equal((await stat(join(at.directory, 'run'))).mode & 0o777, 0o755);
  t.ok(await isAnswered(path));
  listening.close();
  await file[Symbol.asyncDispose]();
  await t.rejects(lstat(path), { code: 'ENOENT' }, 'it goes with the service');
});

void t.test('a directory that was made for root alone lets the group through', async (t) => {
  await using at = await place();
  const path = join(at.directory, 'agent.sock');
  const listening = server();
  await using _ = await listenAt(listening, path, 27);
  t.equal((await stat(at.directory)).mode & 0o777, 0o755);
  listening.close();
});

void t.test('without a group nobody else may connect', async (t) => {
  await using at = await place();
  const path = join(at.directory, 'agent.sock');
  const listening = server();
  await using _ = await listenAt(listening, path, null);
  t.equal((await stat(path)).mode & 0o777, 0o600);
  listening.close();
});

void t.test('what a killed service has left is replaced', async (t) => {
  await using at = await place();
  const path = join(at.directory, 'agent.sock');
  const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  await execa(process.execPath, ['-e', script], { reject: false, timeout: 30_000 });
  t.ok((await lstat(path)).isSocket(), 'there is a socket at which nobody listens');
  const listening = server();
  await using _ = await listenAt(listening, path, null);
  t.ok(await isAnswered(path));
  listening.close();
});

void t.test('the socket of a living service stays, and the other one is told what to do', async (t) => {
  await using at = await place();
  const path = join(at.directory, 'agent.sock');
  const first = server();
  await using _ = await listenAt(first, path, null);
  const second = server();
  await t.rejects(listenAt(second, path, null), { code: 'SERVICE_RUNNING', hint: /systemctl/ });
  t.notOk(second.listening);
  t.ok(await isAnswered(path), 'the first one goes on');
  first.close();
});

void t.test('a socket that another service has made since is not taken away', async (t) => {
  await using at = await place();
  const path = join(at.directory, 'agent.sock');
  const first = server();
  const file = await listenAt(first, path, null);
  await rm(path);
  const second = server();
  await using _ = await listenAt(second, path, null);
  first.close();
  await file[Symbol.asyncDispose]();
  t.ok(await isAnswered(path));
  second.close();
});

void t.test('a place that cannot be used is refused with what is wrong with it', async (t) => {
  await using at = await place();
  const file = join(at.directory, 'file');
  await writeFile(file, 'precious');
  await t.rejects(listenAt(server(), file, null), { code: 'SOCKET_UNUSABLE', message: /no socket/ });
  t.ok((await lstat(file)).isFile());
  const long = join(at.directory, 'x'.repeat(100));
  await t.rejects(listenAt(server(), long, null), { code: 'SOCKET_UNUSABLE', message: /bytes/ });
});

void t.test('where somebody else could put a socket in the place of ours there is none', async (t) => {
  await using at = await place();
  const open = join(at.directory, 'open');
  await mkdir(open);
  await chmod(open, 0o777);
  await t.rejects(listenAt(server(), join(open, 's'), null), { code: 'SOCKET_UNUSABLE', hint: /chmod/ });
  const foreign = join(at.directory, 'foreign');
  await mkdir(foreign);
  await chown(foreign, 65_534, 65_534);
  await t.rejects(listenAt(server(), join(foreign, 's'), null), { code: 'SOCKET_UNUSABLE' });
});

void t.test('a group is found by its name or its number', async (t) => {
  t.equal(await groupIdOf('root'), 0);
  t.equal(await groupIdOf('1234'), 1234);
  await t.rejects(groupIdOf('no-such-group'), { code: 'SOCKET_UNUSABLE', hint: /groupadd/ });
});
