import { createHash, randomBytes } from 'node:crypto';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa, ExecaError } from 'execa';
import { newId } from '../../common/ids.ts';
import { formatPointInTime } from '../../common/time.ts';
import { fileHasher } from '../../common/chunkSums.ts';
import type { Manifest } from '../manifest.ts';
import type { BackupEntry, BackupWriter, MachineIdentity } from '../storage.ts';
import type { DirectoryStorage } from './directoryStorage.ts';
import { artifactNames } from './names.ts';

/** A made-up backup for tests of the storage: one qcow2 volume, a memory state and a definition. */
export interface Sample {
  readonly jobId: string;
  readonly machine: MachineIdentity;
  readonly manifest: Manifest;
  /** Where the image waits to be renamed into the storage. */
  readonly image: string;
  /** Files to be copied. */
  readonly state: string;
  readonly definition: string;
}

export const machine: MachineIdentity = { name: 'vm-001', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };
export const firstTime = new Date('2026-11-20T15:15:23.123Z');

const digest = (data: Buffer): string => createHash('sha256').update(data).digest('hex');

function chunksDigest(data: Buffer): string {
  const hasher = fileHasher('chunks');
  hasher.update(data);
  return hasher.finish().sha256;
}

/**
 * qemu-img measures the processor for the key of an encrypted image, and gives up where a virtual processor's clock has
 * jumped meanwhile.
 */
async function createImage(words: readonly string[]): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await execa('qemu-img', ['create', '-q', ...words], { timeout: 30_000 });
      return;
    } catch (error) {
      const isClock = error instanceof ExecaError && String(error.stderr).includes('accurate CPU usage');
      if (!isClock || attempt === 5) throw error;
    }
  }
}

/** Creates the files of a sample in `directory`. */
export async function makeSample(
  directory: string,
  options: {
    readonly machine?: MachineIdentity;
    readonly time?: Date;
    readonly encrypted?: boolean;
  } = {},
): Promise<Sample> {
  const owner = options.machine ?? machine;
  const time = options.time ?? firstTime;
  const names = artifactNames(owner.name, formatPointInTime(time));
  const jobId = newId();
  const image = join(directory, `image-${jobId}.qcow2`);
  const state = join(directory, `state-${jobId}`);
  const encrypted = options.encrypted === true;
  const secret = [
    '--object',
    'secret,id=s,data=not-secret',
    '-o',
    'encrypt.format=luks,encrypt.key-secret=s',
  ];
  const how = encrypted ? [...secret, '-o', 'encrypt.iter-time=200'] : [];
  await createImage(['-f', 'qcow2', ...how, image, '16M']);
  // Without its key nothing can be written to the other.
  if (!encrypted) await execa('qemu-io', ['-c', 'write -P 7 0 1M', image], { timeout: 30_000 });
  await writeFile(state, randomBytes(300_000));
  const definition = join(directory, `definition-${jobId}`);
  await writeFile(definition, `<domain><name>${owner.name}</name></domain>`);
  const [imageData, stateData, definitionData] = [
    await readFile(image),
    await readFile(state),
    await readFile(definition),
  ];
  const { uid, gid, mode } = await stat(image);
  const manifest: Manifest = {
    formatVersion: 1,
    id: newId(),
    writer: 'stillpoint test',
    machine: owner,
    host: { name: 'host', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: time.toISOString(),
    mode: 'save',
    modeReason: 'asked for',
    consistency: 'memory',
    pauseMs: 900,
    volumes: [
      {
        target: 'vda',
        file: names.volume('vda', 'qcow2'),
        format: 'qcow2',
        virtualSizeBytes: 16 * 1024 * 1024,
        storedBytes: imageData.length,
        sha256: chunksDigest(imageData),
        source: '/var/lib/libvirt/images/vm-001.qcow2',
        owner: { uid, gid, mode: mode & 0o7777 },
        read: 'full',
        ...(encrypted ? { encrypted: true as const } : {}),
      },
    ],
    memory: { file: names.memory, sizeBytes: stateData.length, sha256: digest(stateData), running: true },
    definition: { file: names.definition, sha256: digest(definitionData), autostart: false },
    extras: [],
    steps: [{ name: 'save', durationMs: 12 }],
    labels: {},
  };
  return { jobId, machine: owner, manifest, image, state, definition };
}

/** The steps of a job that stores a sample; each may be run again. */
export function stepsOf(sample: Sample): readonly ((writer: BackupWriter) => Promise<unknown>)[] {
  const { manifest } = sample;
  return [
    (writer) => writer.addByRename(sample.image, manifest.volumes[0]?.file ?? '', { digest: 'chunks' }),
    (writer) => writer.addByCopy(sample.state, manifest.memory?.file ?? ''),
    (writer) => writer.addByCopy(sample.definition, manifest.definition.file),
    (writer) => writer.commit(manifest),
  ];
}

/** Stores a sample in one go. */
export async function storeSample(storage: DirectoryStorage, sample: Sample): Promise<BackupEntry> {
  const writer = await storage.begin(sample);
  for (const step of stepsOf(sample)) await step(writer);
  return storage.find(sample.manifest.id);
}
