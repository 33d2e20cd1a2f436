import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import type { Test } from 'tap';
import { newId } from '../common/ids.ts';
import { loadConfig } from '../config/config.ts';
import type { Manifest } from '../storage/manifest.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import { volumeSource } from '../storage/repository/repositoryFixture.ts';
import { LookedBackups } from './lookedBackups.ts';
import type { FileSearch } from './restore/foundFiles.ts';
import { Repositories } from './repositories.ts';
import { storagesOf } from './storages.ts';

/** What the tests of looking into backups share: a host with a directory and a repository, and no machine. */
export interface LookStage {
  readonly directory: string;
  readonly configFile: string;
  readonly looked: LookedBackups;
  /** What another process on the same host sees; `guestfs` where libguestfs is, as on this host unless told. */
  readonly other: (guestfs?: FileSearch['guestfs']) => LookedBackups;
  readonly storage: (name: StorageName) => Storage;
}

export type StorageName = 'local' | 'vault';
export const storageNames: readonly StorageName[] = ['local', 'vault'];

const machine = { name: 'web', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };

export async function lookStage(test: Test): Promise<LookStage> {
  // Short: the paths of sockets are.
  const directory = await mkdtemp(join(tmpdir(), 'sp-look-'));
  const configFile = join(directory, 'config.yaml');
  const keyFile = join(directory, 'vault.key');
  await mkdir(join(directory, 'local'));
  const storages = {
    local: { kind: 'directory', path: join(directory, 'local') },
    vault: { kind: 'repository', url: `file://${join(directory, 'vault')}`, keyFile },
  };
  const agent = { socket: join(directory, 'run', 'agent.sock'), stateDir: join(directory, 'state') };
  await mkdir(agent.stateDir);
  // JSON is YAML.
  await writeFile(configFile, JSON.stringify({ agent, storages }), { mode: 0o600 });
  const { config } = await loadConfig(configFile, { optional: false });
  await new Repositories(config, configFile).init('vault', { recoveryKey: false });
  const opened = storagesOf(config);
  const storage = (name: string): Storage => {
    const found = opened.get(name);
    if (found === undefined) throw new Error(`no storage ${name}`);
    return found;
  };
  const other = (guestfs?: FileSearch['guestfs']): LookedBackups =>
    new LookedBackups({ config, configPath: configFile }, storage, guestfs);
  const looked = other();
  test.teardown(async () => {
    for (const look of await looked.looks.list()) await looked.looks.end(look);
    await rm(directory, { recursive: true });
  });
  return { directory, configFile, looked, other, storage };
}

/** Stores raw images as the volumes of a backup. @param volumes by target */
export async function storeVolumes(
  storage: Storage,
  directory: string,
  volumes: Readonly<Record<string, Buffer>>,
): Promise<BackupEntry> {
  const backupId = newId();
  const writer = await storage.begin({ jobId: newId(), backupId, machine });
  const xml = join(directory, 'definition.xml');
  await writeFile(xml, '<domain/>');
  const stored: Manifest['volumes'] = [];
  for (const [target, content] of Object.entries(volumes)) {
    const file = `${target}.qcow2`;
    const { sizeBytes, sha256 } = await writer.addVolume(volumeSource(content), file);
    const owner = { uid: 0, gid: 0, mode: 0o600 };
    const about = { target, file, sha256, owner, source: `/images/${file}` };
    const sizes = { virtualSizeBytes: content.length, storedBytes: sizeBytes };
    stored.push({ ...about, ...sizes, format: 'qcow2', read: 'full' });
  }
  const definition = await writer.addByCopy(xml, 'definition.xml');
  await writer.flush();
  return writer.commit({
    formatVersion: 1,
    id: backupId,
    writer: 'test',
    machine,
    host: { name: 'h', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: new Date(Date.now()).toISOString(),
    mode: 'disk',
    modeReason: 'asked for',
    consistency: 'crash',
    pauseMs: null,
    volumes: stored,
    definition: { file: 'definition.xml', sha256: definition.sha256, autostart: false },
    extras: [],
    steps: [],
    labels: {},
  });
}

/**
 * An ext4 file system with what `fill` puts into it, as a raw image.
 * @param debugfs commands of debugfs(8) that change it afterwards
 */
export async function extImage(
  test: Test,
  fill: (root: string) => Promise<void>,
  options: {
    readonly features?: string;
    readonly sizeMiB?: number;
    readonly debugfs?: readonly string[];
  } = {},
): Promise<Buffer> {
  const place = await mkdtemp(join(tmpdir(), 'sp-ext-'));
  test.teardown(() => rm(place, { recursive: true }));
  const [root, image] = [join(place, 'root'), join(place, 'image')];
  await mkdir(root);
  await fill(root);
  const features = options.features === undefined ? [] : ['-O', options.features];
  await execa('mkfs.ext4', ['-q', ...features, '-d', root, image, `${options.sizeMiB ?? 16}M`]);
  for (const command of options.debugfs ?? []) await execa('debugfs', ['-w', '-R', command, image]);
  return readFile(image);
}
