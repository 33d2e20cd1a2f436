import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import type { Test } from 'tap';
import type { VolumeSource } from '../common/volumeSource.ts';

const timeout = 60_000;

/** A directory for one test; its path is short enough for a socket. */
export async function workDirectory(t: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-nbd-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

let servers = 0;

/** Starts a server that goes into the background when it listens, and ends it with the test. */
async function background(
  t: Test,
  directory: string,
  start: (socketPath: string, pidFile: string) => readonly [string, readonly string[]],
): Promise<string> {
  servers += 1;
  const socketPath = join(directory, `nbd-${servers}.sock`);
  const pidFile = join(directory, `nbd-${servers}.pid`);
  const [program, programArguments] = start(socketPath, pidFile);
  await execa(program, programArguments, { stdio: 'ignore', timeout });
  const pid = Number(await readFile(pidFile, 'utf8'));
  t.teardown(() => process.kill(pid));
  return socketPath;
}

/** Serves an image by `qemu-nbd`, read-only, as the export `vda`. Returns its socket. */
export function serveImage(
  t: Test,
  directory: string,
  image: { readonly path: string; readonly format: string; readonly arguments?: readonly string[] },
): Promise<string> {
  return background(t, directory, (socketPath, pidFile) => [
    'qemu-nbd',
    ['--fork', '--pid-file', pidFile, '-t', '-r', '-x', 'vda', '-k', socketPath, '-f', image.format].concat(
      image.arguments ?? ['--shared=8'],
      image.path,
    ),
  ]);
}

/** Serves a qcow2 image by `qemu-storage-daemon`, writable by nobody, as the export `vda` with bitmaps. */
export function serveByDaemon(
  t: Test,
  directory: string,
  image: { readonly path: string; readonly bitmaps: readonly string[] },
): Promise<string> {
  const bitmaps = image.bitmaps.map((name, index) => `,bitmaps.${index}=${name}`).join('');
  return background(t, directory, (socketPath, pidFile) => [
    'qemu-storage-daemon',
    ['--daemonize', '--pidfile', pidFile, '--nbd-server', `addr.type=unix,addr.path=${socketPath}`].concat(
      ['--blockdev', `driver=qcow2,node-name=n,read-only=on,file.driver=file,file.filename=${image.path}`],
      ['--export', `type=nbd,id=e,node-name=n,name=vda${bitmaps}`],
    ),
  ]);
}

export async function qemuImg(...programArguments: readonly string[]): Promise<string> {
  return (await execa('qemu-img', programArguments, { timeout, maxBuffer: 1e9 })).stdout;
}

/** Runs commands of `qemu-io` on an image; one that fails is an error. */
export async function qemuIo(path: string, format: string, commands: readonly string[]): Promise<void> {
  const { stdout } = await execa('qemu-io', ['-f', format, '-d', 'unmap', path], {
    input: `${commands.join('\n')}\n`,
    timeout,
    maxBuffer: 1e9,
  });
  if (/failed|error|invalid|non-numeric|out of range/i.test(stdout))
    throw new Error(`qemu-io: ${stdout.slice(-500)}`);
}

/** Numbers from 0 to below 1, the same for the same seed (linear congruence modulo 2^32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Some bytes of a volume. */
export async function readFrom(
  source: VolumeSource,
  offsetBytes: number,
  lengthBytes: number,
): Promise<Buffer> {
  const bytes = Buffer.alloc(lengthBytes);
  await source.readInto(bytes, offsetBytes);
  return bytes;
}
