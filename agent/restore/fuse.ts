import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { execa } from 'execa';
import { messageOf } from '../../common/errors.ts';
import { canonicalPath, exists } from '../../common/files.ts';
import { RestoreError } from './errors.ts';
import { endProcessesWith } from './processes.ts';
import { startServer } from './served.ts';

/** A volume that is served over NBD, to be seen as a raw file. */
export interface FuseFile {
  /** An empty regular file, over which it is mounted. */
  readonly path: string;
  readonly socket: string;
  readonly exportName: string;
  /** Takes the writes, which the backup never gets; only the owner of the file may do anything with it. */
  readonly scratch?: FuseScratch | undefined;
}

/** What makes a file system of a volume writable for who must put it in order before he reads it. */
export interface FuseScratch {
  /** An empty qcow2 image of the size of the volume. */
  readonly overlay: string;
  /** It does not grow beyond this. */
  readonly overlayBytesMax: number;
  /** The stretch of the volume that the file system is. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

const program = 'qemu-storage-daemon';
/** A server that is restarted is waited for. */
const reconnectSeconds = 30;
const umountMs = 30_000;

/**
 * Mounts volumes as raw files, each over a file of its own, by one process that outlives this one. Without `scratch`
 * they are read-only and only our user sees them.
 * @param pidFile in a directory that is known to `endFuse`; `.log` beside it has what it says
 * @throws RestoreError MOUNT_FAILED
 */
export async function startFuse(files: readonly FuseFile[], pidFile: string): Promise<void> {
  const log = `${pidFile}.log`;
  try {
    const command = [program, '--daemonize', '--pidfile', pidFile, ...files.flatMap(argumentsOf)];
    await startServer([...fileLimit(files), ...command], log);
  } catch (error) {
    const said = (await exists(log)) ? (await readFile(log, 'utf8')).trim().slice(0, 500) : '';
    throw new RestoreError('MOUNT_FAILED', `nothing was mounted: ${said || messageOf(error)}`, {
      cause: error,
      hint: `qemu-system-common (${program}) must be installed, and /dev/fuse be there: modprobe fuse`,
    });
  }
}

/** What a program is started by that may write no longer files; a write beyond fails, and does not end it. */
function fileLimit(files: readonly FuseFile[]): readonly string[] {
  const limits = files.flatMap(({ scratch }) => scratch?.overlayBytesMax ?? []);
  if (limits.length === 0) return [];
  return ['env', '--ignore-signal=XFSZ', 'prlimit', `--fsize=${Math.max(...limits)}`];
}

function argumentsOf(file: FuseFile, index: number): readonly string[] {
  const { socket, exportName, path, scratch } = file;
  const nodes: readonly object[] = [
    {
      driver: 'nbd',
      'node-name': `volume${index}`,
      'read-only': true,
      server: { type: 'unix', path: socket },
      export: exportName,
      'reconnect-delay': reconnectSeconds,
    },
    ...(scratch === undefined ? [] : scratchNodes(scratch, index)),
  ];
  const node = scratch === undefined ? `volume${index}` : `part${index}`;
  const writable = scratch !== undefined;
  const fuse = { type: 'fuse', id: `file${index}`, 'node-name': node, mountpoint: path, writable };
  // A file that may be given to another user must be reachable for him.
  const access = { 'allow-other': writable ? 'on' : 'off' };
  return [
    ...nodes.flatMap((one) => ['--blockdev', JSON.stringify(one)]),
    '--export',
    JSON.stringify({ ...fuse, ...access }),
  ];
}

function scratchNodes({ overlay, offsetBytes, lengthBytes }: FuseScratch, index: number): readonly object[] {
  const file = { driver: 'file', filename: overlay };
  return [
    { driver: 'qcow2', 'node-name': `overlay${index}`, file, backing: `volume${index}` },
    {
      driver: 'raw',
      'node-name': `part${index}`,
      offset: offsetBytes,
      size: lengthBytes,
      file: `overlay${index}`,
    },
  ];
}

/**
 * Takes the files off again, and ends the process that serves them, also one that was killed half way.
 * @param directory that of the `pidFile`; whatever is mounted in it goes too
 * @throws RestoreError MOUNT_BUSY while somebody has one open; then that one stays
 */
export async function endFuse(paths: readonly string[], directory: string): Promise<void> {
  const isInside = (path: string): boolean => path.startsWith(`${directory}/`);
  // The kernel tells of mounts by paths without links.
  const inside = `${await canonicalPath(directory)}/`;
  const ours = new Set(await Promise.all(paths.map(canonicalPath)));
  // What is mounted inside of another mount goes before that.
  for (const path of (await mountPoints()).toReversed()) {
    if (!ours.has(path) && !path.startsWith(inside)) continue;
    const { failed, stderr } = await execa('umount', [path], {
      reject: false,
      stdin: 'ignore',
      timeout: umountMs,
      env: { LC_ALL: 'C' },
    });
    // Somebody else may have been quicker.
    if (failed && (await mountPoints()).includes(path))
      throw new RestoreError('MOUNT_BUSY', `${path} is still used: ${stderr.trim()}`, {
        hint: `fuser -vm ${path} says by whom; then: stillpoint storage unmount DIR`,
        retryable: true,
      });
  }
  await endProcessesWith((args) => basename(args[0] ?? '') === program && args.some(isInside));
}

/** Every place that something is mounted on. */
export async function mountPoints(): Promise<readonly string[]> {
  return (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').map((line) =>
    // Space, tabulator, newline and backslash are written in octal there, proc(5).
    (line.split(' ')[4] ?? '').replaceAll(/\\([0-7]{3})/g, (_, digits: string) =>
      String.fromCharCode(Number.parseInt(digits, 8)),
    ),
  );
}
