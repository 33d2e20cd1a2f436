import { randomInt } from 'node:crypto';
import { chmod, chown, mkdir, open, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { execa } from 'execa';
import { documentPath } from '../../common/documents.ts';
import { isErrno, messageOf } from '../../common/errors.ts';
import { ensureAppliance, environmentOf, type InstalledGuestfs, kvmWorks } from './appliance.ts';
import { RestoreError } from './errors.ts';
import { readerUser } from './extTree.ts';
import { endFuse } from './fuse.ts';
import { Guestfish, guestfsDirectory } from './guestfish.ts';
import { GuestfsTree, type NamesFile } from './guestfsTree.ts';
import type { OpenFileSystem } from './guestFileSystem.ts';
import type { Look } from './looks.ts';
import { requireOverlayRoom, type ScratchOverlay, serveScratch } from './scratch.ts';

/*
 * Volumes of a look as libguestfs reads them. guestfish and its virtual machine run as nobody, in a group that nobody
 * else is in and without any right; all that they may write is a file system in memory that is bounded, and overlays
 * over the volumes.
 */

/** Groups that systemd gives to services for as long as they run, and no package to anybody. */
const groupsFrom = 61_184;
const groupsTo = 65_519;
/** What libguestfs, QEMU and names of files may take beside the overlays. */
const memoryBytes = 256 * 1024 * 1024;
const mountMs = 30_000;
/** Without KVM the appliance takes a minute on a busy host. */
const launchMs = 600_000;
/** A journal may be brought in. */
const openMs = 300_000;
/** `sockaddr_un.sun_path` without the NUL, and what libguestfs adds to its directory. */
const socketDirectoryBytesMax = 107 - '/libguestfsXXXXXX/guestfsd.sock'.length;
/** A guest can make more subvolumes than anybody looks through. */
const fileSystemsMax = 200;

/** A file system that libguestfs has found. */
export interface GuestfsFileSystem {
  /** As libguestfs names it. */
  readonly mountable: string;
  /** As people are told: `vda partition 2`, `LVM vg/root`. */
  readonly name: string;
  /** What chooses it: `2`, `2:SUBVOLUME`, `vg/root`. */
  readonly choice: string;
  /** Of a volume or a partition; `null` for what stands on several, perhaps. */
  readonly on: { readonly target: string; readonly partition: number } | null;
  readonly kind: string;
}

export interface GuestfsPlaces {
  readonly look: Look;
  /** Directory of the look. */
  readonly directory: string;
  /** Directory that keeps the appliance. */
  readonly appliance: string;
}

interface Parts {
  readonly guestfish: Guestfish;
  readonly names: NamesFile;
  readonly overlays: readonly ScratchOverlay[];
  readonly fileSystems: readonly GuestfsFileSystem[];
}

/** The volumes of a look in an appliance that runs. */
export class GuestfsVolumes implements AsyncDisposable {
  readonly #parts: Parts;
  readonly #opened: AsyncDisposableStack;
  #mounted = 0;

  private constructor(parts: Parts, opened: AsyncDisposableStack) {
    this.#parts = parts;
    this.#opened = opened;
  }

  /** What may hold files, on all volumes. */
  get fileSystems(): readonly GuestfsFileSystem[] {
    return this.#parts.fileSystems;
  }

  /**
   * Starts an appliance with every volume of a look, over overlays.
   * @throws RestoreError FILE_SYSTEM_UNSUPPORTED, CANNOT_SERVE, MOUNT_FAILED; the reason of the signal
   */
  static async open(
    installed: InstalledGuestfs,
    { look, directory, appliance }: GuestfsPlaces,
    signal: AbortSignal,
  ): Promise<GuestfsVolumes> {
    const place = guestfsDirectory(directory);
    const [memory, scratch] = [join(place, 't'), join(place, 'scratch')];
    const [own, fixed, volumes] = [join(memory, 'o'), join(memory, 'appliance'), join(memory, 'volumes')];
    requireShort(own);
    await using opened = new AsyncDisposableStack();
    opened.defer(async () => {
      await endFuse([], place);
      await rm(place, { recursive: true, force: true });
    });
    await mkdir(place);
    await chmod(place, 0o711);
    await mkdir(scratch, { mode: 0o700 });
    await mkdir(memory);
    await requirePassable(place);
    const built = await ensureAppliance(installed, appliance, scratch, signal);
    const group = randomInt(groupsFrom, groupsTo + 1);
    await mount('-t', 'tmpfs', '-o', tmpfsOptions(group), 'stillpoint', memory);
    for (const path of [own, fixed, volumes]) await mkdir(path, { mode: 0o710 });
    await mount('-o', 'bind,ro', built, fixed);
    await chown(own, readerUser.uid, group);
    await chmod(own, 0o700);
    await chown(volumes, 0, group);
    const files = look.volumes.map(({ target }) => join(volumes, target));
    const overlays = await serveScratch({
      directory: scratch,
      files: look.volumes.map((volume, index) => ({
        volume,
        path: files[index] ?? '',
        offsetBytes: 0,
        lengthBytes: volume.virtualSizeBytes,
      })),
      group,
    });
    const names = await namesFile(join(memory, 'names'), group);
    opened.defer(() => names.handle.close());
    const prefix = asReader(group, await kvmGroup());
    const hasKvm = await kvmWorks(join(memory, 'rom'), prefix, signal);
    const guestfish = opened.use(
      await Guestfish.start({
        command: [
          ...prefix,
          'guestfish',
          '--rw',
          '--no-progress-bars',
          '--format=raw',
          ...files.flatMap((file) => ['-a', file]),
        ],
        environment: {
          ...environmentOf(own),
          XDG_RUNTIME_DIR: own,
          LIBGUESTFS_TMPDIR: own,
          LIBGUESTFS_CACHEDIR: own,
          LIBGUESTFS_PATH: fixed,
          LIBGUESTFS_BACKEND: 'direct',
          ...(hasKvm ? {} : { LIBGUESTFS_BACKEND_SETTINGS: 'force_tcg' }),
        },
        directory: '/',
        logFile: join(memory, 'log'),
        signal,
      }),
    );
    const fileSystems = await launch(guestfish, look, signal);
    return new GuestfsVolumes({ guestfish, names, overlays, fileSystems }, opened.move());
  }

  /**
   * Opens one of the file systems, read-only; what its journal holds is brought in, in the overlay.
   * @throws RestoreError FILE_SYSTEM_UNSUPPORTED
   */
  async openFileSystem({ mountable, kind, name }: GuestfsFileSystem): Promise<OpenFileSystem> {
    const { guestfish, names, overlays } = this.#parts;
    this.#mounted += 1;
    const mountPoint = `/${this.#mounted}`;
    // A clone of a file system has the same UUID, which XFS refuses a second time.
    const options = kind === 'xfs' ? 'ro,nouuid' : 'ro';
    try {
      await guestfish.ask('mkmountpoint', [mountPoint]);
      await guestfish.ask('mount-options', [options, mountable, mountPoint], { answerMs: openMs });
      for (const overlay of overlays) await requireOverlayRoom(overlay);
    } catch (error) {
      if (!(error instanceof RestoreError) || error.code !== 'FILE_UNREADABLE') throw error;
      for (const overlay of overlays) await requireOverlayRoom(overlay, error);
      throw new RestoreError(
        'FILE_SYSTEM_UNSUPPORTED',
        `${name} (${kind}) cannot be opened: ${error.message}`,
        {
          cause: error,
          hint: 'choose others with --volume and --partition; stillpoint storage mount BACKUP DIR gives the whole volume',
        },
      );
    }
    const tree = new GuestfsTree(guestfish, mountPoint, names);
    return { tree, name, [Symbol.asyncDispose]: () => Promise.resolve() };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#opened.disposeAsync();
  }
}

async function launch(
  guestfish: Guestfish,
  look: Look,
  signal: AbortSignal,
): Promise<readonly GuestfsFileSystem[]> {
  try {
    await guestfish.ask('run', [], { answerMs: launchMs });
    const answer = await guestfish.ask('list-filesystems', [], { answerMs: openMs });
    const targets = look.volumes.map(({ target }) => target);
    return parseFileSystems(answer.toString('latin1'), targets);
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof RestoreError)) throw error;
    throw new RestoreError(
      'FILE_SYSTEM_UNSUPPORTED',
      `the appliance of libguestfs does not run: ${error.message}`,
      {
        cause: error,
        hint: `libguestfs-test-tool says why; see ${documentPath('docs/GUEST-FILES.md')}`,
      },
    );
  }
}

/** What is on a volume and holds no files. */
const withoutFiles = new Set([
  '',
  'unknown',
  'swap',
  'LVM2_member',
  'linux_raid_member',
  'crypto_LUKS',
  'BitLocker',
]);

/**
 * The answer of `list-filesystems`: `DEVICE: KIND` a line, where DEVICE may be `btrfsvol:DEVICE/SUBVOLUME`. A guest
 * has named volume groups and subvolumes: what is no such line, or names what it cannot, is left out.
 * @param targets names of the volumes, in the order in which libguestfs has them: `/dev/sda` is the first
 */
export function parseFileSystems(answer: string, targets: readonly string[]): readonly GuestfsFileSystem[] {
  const found: GuestfsFileSystem[] = [];
  for (const line of answer.split('\n')) {
    const [, mountable = '', kind = ''] = /^(.+): ([\w-]+)$/.exec(line) ?? [];
    if (mountable === '' || withoutFiles.has(kind) || found.length >= fileSystemsMax) continue;
    const [, device = mountable, subvolume = null] =
      /^btrfsvol:(\/dev\/[^/]+|\/dev\/mapper\/[^/]+)\/(.*)$/.exec(mountable) ?? [];
    // A volume group has a directory of its own, so that its subvolumes cannot be told from its volumes: not listed.
    if (!/^\/dev\/[A-Za-z0-9+_.][A-Za-z0-9+_./-]*$/.test(device) || device.includes('/..')) continue;
    const on = placeOf(device, targets);
    const base = on === null ? device.slice('/dev/'.length) : String(on.partition);
    const where = on === null ? `volume ${base}` : nameOf(on);
    found.push({
      mountable,
      kind,
      on: subvolume === null ? on : null,
      choice: subvolume === null ? base : `${base}:${subvolume}`,
      name: subvolume === null ? where : `${where} subvolume ${subvolume}`,
    });
  }
  return found;
}

function nameOf({ target, partition }: { readonly target: string; readonly partition: number }): string {
  return partition === 0 ? target : `${target} partition ${partition}`;
}

/** `/dev/sdb2` is partition 2 of the second volume. */
function placeOf(device: string, targets: readonly string[]): GuestfsFileSystem['on'] {
  const [, letters = '', digits = '0'] = /^\/dev\/sd([a-z]{1,2})(\d{1,4})?$/.exec(device) ?? [];
  let index = 0;
  for (const letter of letters) index = index * 26 + (letter.charCodeAt(0) - 96);
  const target = letters === '' ? undefined : targets[index - 1];
  return target === undefined ? null : { target, partition: Number(digits) };
}

/** What starts a program as nobody, in this group, without any right or way to one. */
function asReader(group: number, alsoIn: number | null): readonly string[] {
  const groups = alsoIn === null ? ['--clear-groups'] : ['--groups', String(alsoIn)];
  const none = ['--no-new-privs', '--inh-caps=-all', '--bounding-set=-all'];
  return ['setpriv', '--reuid', String(readerUser.uid), '--regid', String(group), ...groups, ...none, '--'];
}

/** The group that may use KVM; `null` where there is none, or everybody may. */
async function kvmGroup(): Promise<number | null> {
  try {
    const { gid, mode } = await stat('/dev/kvm');
    return gid !== 0 && (mode & 0o006) !== 0o006 && (mode & 0o060) === 0o060 ? gid : null;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
}

function tmpfsOptions(group: number): string {
  return `size=${memoryBytes},mode=0710,uid=0,gid=${group},nosuid,nodev,noexec`;
}

async function mount(...args: readonly string[]): Promise<void> {
  try {
    await execa('mount', args, { stdin: 'ignore', timeout: mountMs, env: { LC_ALL: 'C' } });
  } catch (error) {
    throw new RestoreError('MOUNT_FAILED', `nothing was mounted for libguestfs: ${messageOf(error)}`, {
      cause: error,
      hint: 'root with CAP_SYS_ADMIN must run this',
    });
  }
}

/** Written by the children, who can put nothing else in its place, and read by us. */
async function namesFile(path: string, group: number): Promise<NamesFile> {
  const handle = await open(path, 'wx+', 0o600);
  await handle.chown(readerUser.uid, group);
  return { path, handle };
}

/** @throws RestoreError CANNOT_SERVE */
function requireShort(directory: string): void {
  if (Buffer.byteLength(directory) <= socketDirectoryBytesMax) return;
  throw new RestoreError(
    'CANNOT_SERVE',
    `the path of a socket of libguestfs is too long below ${directory}`,
    {
      hint: 'set agent.socket to a shorter path',
    },
  );
}

/** @throws RestoreError CANNOT_SERVE: nobody cannot get to it */
async function requirePassable(directory: string): Promise<void> {
  for (let path = directory; path !== '/'; path = dirname(path)) {
    if (((await stat(path)).mode & 0o001) !== 0) continue;
    throw new RestoreError('CANNOT_SERVE', `libguestfs, which runs as nobody, cannot pass through ${path}`, {
      hint: `chmod o+x ${path}; or set agent.socket to another directory`,
    });
  }
}
