/**
 * The process that a radosgw's life hangs on: `node radosgwKeeper.ts ROOT`. It runs a Ceph of one monitor, one OSD in
 * memory and a radosgw, all on loopback, below the directory ROOT, and answers with one line of JSON. When its standard
 * input closes, which also happens when the test process is killed, it ends them and removes the directory; when it is
 * killed itself, the kernel ends them.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import path from 'node:path';
import { execa } from 'execa';
import { eventually } from './eventually.ts';
import type { RadosgwAnswer } from './radosgwAnswer.ts';
import { labPrefix } from './sweep.ts';

const [root] = process.argv.slice(2);
if (root === undefined || !path.basename(root).startsWith(labPrefix))
  throw new Error('usage: radosgwKeeper.ts ROOT');

const conf = path.join(root, 'ceph.conf');
const daemons: ChildProcess[] = [];
/** Name of virtual hosts: BUCKET.s3.test. */
const dnsName = 's3.test';

try {
  answer(await start(root));
  process.stdin.resume();
  await once(process.stdin, 'end');
} catch (error) {
  answer({ error: String(error) });
} finally {
  for (const daemon of daemons) daemon.kill('SIGKILL');
  await Promise.all(
    daemons.map(async (daemon) => daemon.exitCode ?? daemon.signalCode ?? once(daemon, 'exit')),
  );
  await rm(root, { recursive: true, force: true });
}

async function start(directory: string): Promise<RadosgwAnswer> {
  const [monitorPort, port] = [await freePort(), await freePort()];
  const clusterId = randomUUID();
  await writeFile(conf, configuration(directory, { clusterId, monitorPort, port }));
  await mkdir(path.join(directory, 'osd'));
  const monmap = path.join(directory, 'monmap');
  const address = `[v2:127.0.0.1:${monitorPort}/0]`;
  await run('monmaptool', ['--create', '--fsid', clusterId, '--addv', 'a', address, monmap]);
  await run('ceph-mon', ['--mkfs', '-i', 'a', '--monmap', monmap]);
  startDaemon('ceph-mon', ['-i', 'a']);
  // The same id in both places, or the OSD is refused.
  const osdId = randomUUID();
  await run('ceph', ['osd', 'new', osdId]);
  await run('ceph-osd', ['-i', '0', '--mkfs', '--osd-uuid', osdId]);
  startDaemon('ceph-osd', ['-i', '0']);
  startDaemon('radosgw', ['-n', 'client.rgw']);
  const accessKeyId = randomBytes(10).toString('hex').toUpperCase();
  const secretAccessKey = randomBytes(20).toString('hex');
  const keys = ['--access-key', accessKeyId, '--secret-key', secretAccessKey];
  await run('radosgw-admin', [
    '-n',
    'client.rgw',
    'user',
    'create',
    '--uid',
    'test',
    '--display-name',
    't',
    ...keys,
  ]);
  const endpoint = `http://127.0.0.1:${port}`;
  await eventually(async () => (await fetch(endpoint)).ok, { timeoutMs: 60_000, intervalMs: 100 });
  return { endpoint, dnsName, accessKeyId, secretAccessKey };
}

function configuration(
  directory: string,
  ids: { readonly clusterId: string; readonly monitorPort: number; readonly port: number },
): string {
  return `[global]
fsid = ${ids.clusterId}
mon host = [v2:127.0.0.1:${ids.monitorPort}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
run dir = ${directory}
log file = ${directory}/$name.log
admin socket = ${directory}/$name.asok
pid file = ${directory}/$name.pid
mon data = ${directory}/mon
osd data = ${directory}/osd
mon allow pool size one = true
mon cluster log file = ${directory}/cluster.log
osd objectstore = memstore
memstore device bytes = 2147483648
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
[client.rgw]
# radosgw has other defaults than all other programs, and waits for ever.
auth client required = none
ms mon client mode = crc secure
rgw frontends = beast endpoint=127.0.0.1:${ids.port}
rgw dns name = ${dnsName}
rgw data = ${directory}
`;
}

async function run(program: string, args: readonly string[]): Promise<void> {
  await execa('setpriv', mortal(program, args), { timeout: 60_000, killSignal: 'SIGKILL' });
}

function startDaemon(program: string, args: readonly string[]): void {
  daemons.push(spawn('setpriv', mortal(program, ['-f', ...args]), { stdio: 'ignore' }));
}

/** Arguments of setpriv for a program that lives no longer than this process. */
function mortal(program: string, args: readonly string[]): readonly string[] {
  return ['--pdeathsig', 'KILL', '--', program, '-c', conf, ...args];
}

/** One that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  if (typeof address !== 'object' || address === null) throw new Error('no port is free');
  return address.port;
}

function answer(value: RadosgwAnswer): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
