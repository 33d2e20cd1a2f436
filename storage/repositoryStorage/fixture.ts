import { randomBytes } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import type { Test } from 'tap';
import type { FileDigest } from '../../common/copy.ts';
import { newId } from '../../common/ids.ts';
import type { Extent } from '../../common/volumeSource.ts';
import type { ReadOptions } from '../backends/backend.ts';
import { FileBackend } from '../backends/fileBackend.ts';
import type { Manifest } from '../manifest.ts';
import type { BackupEntry, BackupWriter } from '../storage.ts';
import { packBytesMax } from '../repository/limits.ts';
import { initTestRepository, testSecret, volumeSource } from '../repository/repositoryFixture.ts';
import { Repository } from '../repository/repository.ts';
import { RepositoryStorage } from './repositoryStorage.ts';

/** What the tests of repositories as storages share. */
export const machine = { name: 'web 1', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };
export const owner = { uid: 0, gid: 0, mode: 0o600 };

export interface Place {
  readonly directory: string;
  readonly storage: RepositoryStorage;
  /** The same repository, as another process sees it. */
  readonly other: (onReadWhole?: (name: string) => void) => RepositoryStorage;
}

/** Tells of every object that is read whole. */
class ListenedBackend extends FileBackend {
  readonly #onReadWhole: ((name: string) => void) | undefined;

  constructor(root: string, onReadWhole: ((name: string) => void) | undefined) {
    super(root);
    this.#onReadWhole = onReadWhole;
  }

  override read(name: string, options: ReadOptions = {}): Promise<Buffer | null> {
    // Up to what any of them may be.
    if ((options.range?.lengthBytes ?? packBytesMax) >= packBytesMax) this.#onReadWhole?.(name);
    return super.read(name, options);
  }
}

/** The work is stopped when a pack of it is on its way. */
class StoppingBackend extends FileBackend {
  readonly #stop: () => void;

  constructor(root: string, stop: () => void) {
    super(root);
    this.#stop = stop;
  }

  override async create(...call: Parameters<FileBackend['create']>): Promise<'created' | 'exists'> {
    const [name, , { signal } = {}] = call;
    if (!name.startsWith('packs/') || signal === undefined) return super.create(...call);
    this.#stop();
    throw signal.reason;
  }
}

/** A repository whose work is stopped when the first pack of it is on its way. */
export function stoppingStorage({ directory }: Place, name: string, stop: () => void): RepositoryStorage {
  const root = join(directory, name);
  return new RepositoryStorage({
    name,
    location: root,
    open: () => Repository.open(new StoppingBackend(root, stop), testSecret),
    room: () => Promise.resolve({ capacityBytes: 2, freeBytes: 1 }),
  });
}

/**
 * @param directory where it is made; a new one unless told
 * @param sizes of packs and of chunks
 */
export async function placeFor(
  test: Test,
  name = 'vault',
  directory: string = test.testdir(),
  sizes: readonly [number, number] | readonly [] = [],
): Promise<Place> {
  const root = join(directory, name);
  await mkdir(root);
  await initTestRepository(new FileBackend(root), ...sizes);
  const open = (onReadWhole?: (name: string) => void): RepositoryStorage =>
    new RepositoryStorage({
      name,
      location: root,
      open: () => Repository.open(new ListenedBackend(root, onReadWhole), testSecret),
      room: () => Promise.resolve({ capacityBytes: 2, freeBytes: 1 }),
    });
  return { directory, storage: open(), other: open };
}

const whole = (volume: Buffer): readonly Extent[] => [
  { offsetBytes: 0, lengthBytes: volume.length, zero: false },
];

/** Half of it is zeros. */
export function someVolume(): Buffer {
  return Buffer.concat([randomBytes(700_416), Buffer.alloc(1_048_576), randomBytes(348_160)]);
}

export interface Stored {
  readonly entry: BackupEntry;
  readonly memory: Buffer;
}

/** The manifest of a backup of one volume with memory: `v`, `m` and `d`. */
export function manifestOf(backup: {
  readonly id: string;
  readonly time?: string | undefined;
  readonly volume: FileDigest & { readonly virtualSizeBytes: number; readonly read: 'full' | 'increment' };
  readonly memory: FileDigest;
  readonly definition: FileDigest;
}): Manifest {
  const { id, time = '2026-11-22T10:00:00.000Z', volume, memory, definition } = backup;
  return {
    formatVersion: 1,
    id,
    writer: 'test',
    machine,
    host: { name: 'h', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: time,
    mode: 'live',
    modeReason: 'asked for',
    consistency: 'memory',
    pauseMs: 1,
    volumes: [
      {
        target: 'vda',
        file: 'v',
        format: 'qcow2',
        virtualSizeBytes: volume.virtualSizeBytes,
        storedBytes: volume.sizeBytes,
        sha256: volume.sha256,
        source: '/images/web.qcow2',
        owner,
        read: volume.read,
      },
    ],
    memory: { file: 'm', sizeBytes: memory.sizeBytes, sha256: memory.sha256, running: true },
    definition: { file: 'd', sha256: definition.sha256, autostart: true },
    extras: [],
    steps: [],
    labels: { why: 'test' },
  };
}

export async function store(
  place: Place,
  volume: Buffer,
  options: {
    readonly parent?: string;
    readonly changes?: readonly Extent[];
    readonly time?: string;
    /** The volume is a container that only who has its key can open. */
    readonly encrypted?: true;
    /** Where the commit is made, when not by the writer itself. */
    readonly committer?: (
      writer: BackupWriter,
      request: { jobId: string; backupId: string },
    ) => Promise<BackupWriter>;
  } = {},
): Promise<Stored> {
  const request = { jobId: newId(), backupId: newId(), machine };
  const writer = await place.storage.begin(request);
  const memory = randomBytes(200_001);
  const files = { memory: join(place.directory, 'memory'), xml: join(place.directory, 'xml') };
  await writeFile(files.memory, memory);
  await writeFile(files.xml, '<domain/>');
  const source = volumeSource(volume);
  const parent = { backupId: options.parent ?? '', target: 'vda' };
  const stored =
    options.parent === undefined
      ? await writer.addVolume(source, 'v')
      : await writer.addIncrement(source, { parent, changes: options.changes ?? whole(volume) }, 'v');
  const state = await writer.addByCopy(files.memory, 'm');
  const definition = await writer.addByCopy(files.xml, 'd');
  await writer.flush();
  const extra = { sizeBytes: definition.sizeBytes, sha256: definition.sha256 };
  const base = manifestOf({
    id: request.backupId,
    time: options.time,
    volume: {
      ...stored,
      virtualSizeBytes: volume.length,
      read: parent.backupId === '' ? 'full' : 'increment',
    },
    memory: state,
    definition,
  });
  const manifest: Manifest = {
    ...base,
    volumes: base.volumes.map((one) => ({
      ...one,
      ...(options.encrypted === undefined ? {} : { encrypted: options.encrypted }),
    })),
    extras: [
      { kind: 'nvram', file: 'n', ...extra, source: '/nvram/web' },
      { kind: 'network', file: 'w', ...extra, name: 'default' },
    ],
  };
  const committer = (await options.committer?.(writer, request)) ?? writer;
  return { entry: await committer.commit(manifest), memory };
}

export async function copiedVolume(
  { directory }: Place,
  storage: RepositoryStorage,
  entry: BackupEntry,
): Promise<Buffer> {
  const volume = entry.manifest?.volumes[0];
  if (volume === undefined) throw new Error('it has no volume');
  const name = newId();
  const [to, raw] = [join(directory, `${name}.qcow2`), join(directory, `${name}.raw`)];
  const artifact = { path: 'v', sizeBytes: volume.storedBytes, sha256: volume.sha256 };
  await storage.copyOut(artifact, to, { as: 'volume' });
  await execa('qemu-img', ['check', '-q', to]);
  await execa('qemu-img', ['convert', '-O', 'raw', to, raw]);
  return readFile(raw);
}
