import { chmod, chown, mkdir, open, readFile, rm, stat } from 'node:fs/promises';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { basename, dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { messageOf } from '../../common/errors.ts';
import { exists } from '../../common/files.ts';
import type { ProcessUser } from '../hypervisor/capabilitiesXml.ts';
import { RestoreError } from './errors.ts';
import { endProcessesWith } from './processes.ts';

/** An artifact of a backup that a server of its own serves, read-only, until it is told to end. */
export interface ServedArtifact {
  readonly target: string;
  readonly artifact: string;
  readonly format: 'qcow2' | 'raw';
  readonly socket: string;
  /** It is a stream of a repository: a server of ours reads it. Otherwise a file, for `qemu-nbd`. */
  readonly repository: ServedStream | null;
}

/** Where a server finds a stream of a repository. */
export interface ServedStream {
  /** File of the configuration, which has the storage. */
  readonly config: string;
  readonly storage: string;
  readonly root: string;
}

/** In a checkout one directory up; built, all programs stand beside each other. */
const serverFile = fileURLToPath(
  new URL(import.meta.url.endsWith('.ts') ? '../serveVolume.ts' : './serveVolume.js', import.meta.url),
);

/** `qemu-nbd` opens an image, and goes, faster than this. */
const startMs = 30_000;
const answerMs = 5000;
/** Where systemd runs, a server gets a unit of its own: it must not end with the agent's. */
const systemdDirectory = '/run/systemd/system';

/**
 * Makes sure that an artifact is served, by a process that outlives this one: the machine reads from it until its
 * images are complete.
 * @param user who may connect, beside root: QEMU's user
 * @returns true when a server had to be started
 * @throws RestoreError CANNOT_SERVE
 */
export async function ensureServed(served: ServedArtifact, user: ProcessUser): Promise<boolean> {
  if (await answers(served.socket)) return false;
  await endServer(served.socket);
  await makePassable(dirname(served.socket));
  try {
    const unit = await ownUnit(served.socket);
    const log = logOf(served.socket);
    if (served.repository === null) await startServer([...unit, ...serverCommand(served)], log);
    else await startOurs([...unit, ...ourCommand(served, served.repository, user)], log);
    await chmod(served.socket, 0o600);
    await chown(served.socket, user.uid, user.gid);
  } catch (error) {
    const said = (await exists(logOf(served.socket))) ? await readFile(logOf(served.socket), 'utf8') : '';
    const reason = said.trim().slice(0, 500) || messageOf(error);
    throw new RestoreError('CANNOT_SERVE', `${served.artifact} cannot be served: ${reason}`, {
      cause: error,
      hint:
        served.repository === null
          ? `qemu-utils must be installed; try: qemu-img info ${served.artifact}; or restore without --instant`
          : `stillpoint storage check ${served.repository.storage}; or restore without --instant`,
      retryable: true,
    });
  }
  return true;
}

/** Starts a server that goes into the background when it listens; what it has to say goes into a file. */
export async function startServer(command: readonly string[], logFile: string): Promise<void> {
  const [program = '', ...args] = command;
  const log = await open(logFile, 'w', 0o600);
  try {
    // The server keeps its standard error for good: a pipe to us would never end.
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', log.fd], timeout: startMs });
    const [code, signalName]: unknown[] = await once(child, 'exit');
    if (code !== 0) throw new Error(`${program} ended with ${String(code ?? signalName)}`);
  } finally {
    await log.close();
  }
}

/** Starts a server of ours, which says when it listens and goes on without us. */
async function startOurs(command: readonly string[], logFile: string): Promise<void> {
  const [program = '', ...args] = command;
  const { NODE_OPTIONS: _ofTheParent, ...env } = process.env;
  const log = await open(logFile, 'w', 0o600);
  try {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', log.fd], env, detached: true });
    const said = child.stdout;
    if (said === null) throw new Error('the server has no output');
    const ended = once(child, 'exit').then(([code, name]: unknown[]) => {
      throw new Error(`the server ended with ${String(code ?? name)}`);
    });
    const late = AbortSignal.timeout(startMs);
    try {
      await Promise.race([once(said, 'data', { signal: late }), ended]);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    } finally {
      // That it ends later is no concern of ours.
      ended.catch(() => undefined);
      said.destroy();
      child.unref();
    }
  } finally {
    await log.close();
  }
}

function ourCommand(
  { socket, target }: ServedArtifact,
  { config, storage, root }: ServedStream,
  { uid, gid }: ProcessUser,
): readonly string[] {
  return [process.execPath, serverFile, socket, target, config, storage, root, String(uid), String(gid)];
}

/** Ends the server of a socket, if there is one, and takes the socket away. */
export async function endServer(socket: string): Promise<void> {
  await endProcessesWith((args) => {
    const isServer = basename(args[0] ?? '') === 'qemu-nbd' || args[1] === serverFile;
    return isServer && args.includes(socket);
  });
  await rm(socket, { force: true });
  await rm(logOf(socket), { force: true });
}

function logOf(socket: string): string {
  return `${socket}.log`;
}

/** A server listens there. */
export function answers(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const connection = connect(socket);
    const end = (is: boolean): void => {
      connection.destroy();
      resolve(is);
    };
    connection.setTimeout(answerMs, () => end(false));
    connection.once('connect', () => end(true));
    connection.once('error', () => end(false));
  });
}

/** Like the other servers of ours it takes no lock: the backup may be read by others, and nobody writes it. */
function serverCommand({ target, artifact, format, socket }: ServedArtifact): readonly string[] {
  // A comma separates options; in a file's name it is doubled.
  const file = artifact.replaceAll(',', ',,');
  const image = `driver=${format},force-share=on,read-only=on,file.driver=file,file.filename=${file}`;
  const how = ['--read-only', '--persistent', '--shared=0', '--fork', '--export-name', target];
  return ['qemu-nbd', ...how, '--socket', socket, '--image-opts', image];
}

async function ownUnit(socket: string): Promise<readonly string[]> {
  if (!(await exists(systemdDirectory))) return [];
  const name = `stillpoint-serve-${basename(dirname(socket))}-${basename(socket)}.scope`;
  return ['systemd-run', '--scope', '--collect', '--quiet', `--unit=${name}`];
}

/** QEMU's user must get through to the socket, which is all that it may touch there. */
async function makePassable(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o711 });
  for (const path of [dirname(directory), directory]) {
    const { mode } = await stat(path);
    if ((mode & 0o111) !== 0o111) await chmod(path, (mode & 0o7777) | 0o111);
  }
}
