import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { peerCredentialsReader } from './peerCredentials.ts';

async function accepted(
  connectTo: (path: string) => Promise<unknown>,
  use: (socket: Socket) => void,
): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-peer-'));
  const path = join(directory, 's');
  const server = createServer();
  try {
    server.listen(path);
    await once(server, 'listening');
    const client = connectTo(path);
    const [socket]: Socket[] = await once(server, 'connection');
    if (socket === undefined) throw new Error('nobody connected');
    use(socket);
    socket.destroy();
    await client;
  } finally {
    server.close();
    await rm(directory, { recursive: true });
  }
}

async function connectHere(path: string): Promise<void> {
  const socket = connect(path);
  await once(socket, 'close');
}

void t.test('the system says which process of which user and groups has connected', async (t) => {
  const read = await peerCredentialsReader();
  await accepted(connectHere, (socket) => {
    const { pid, uid, gid, groups } = read(socket);
    t.same({ pid, uid, gid }, { pid: process.pid, uid: process.getuid?.(), gid: process.getgid?.() });
    t.same(new Set([gid, ...groups]), new Set([gid, ...(process.getgroups?.() ?? [])]));
  });
});

void t.test(
  'another user with other groups is known as such',
  { skip: process.getuid?.() !== 0 },
  async (t) => {
    const read = await peerCredentialsReader();
    const script = `require('node:net').connect(process.argv[1]).on('close', () => process.exit())`;
    const asNobody = async (path: string): Promise<void> => {
      await execa('chmod', ['-R', 'a+rwX', join(path, '..')], { timeout: 10_000 });
      const ids = ['--reuid', '65534', '--regid', '65534', '--groups', '65534,27'];
      await execa('setpriv', [...ids, process.execPath, '-e', script, path], { timeout: 30_000 });
    };
    await accepted(asNobody, (socket) => {
      const { uid, gid, groups } = read(socket);
      t.equal(uid, 65_534);
      t.equal(gid, 65_534);
      t.ok(groups.includes(27));
    });
  },
);

void t.test('a connection that is gone is refused', async (t) => {
  const read = await peerCredentialsReader();
  await accepted(connectHere, (socket) => {
    socket.destroy();
    t.throws(() => read(socket), { code: 'CALLER_DENIED' });
  });
});
