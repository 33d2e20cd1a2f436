import { createHash } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { DirectoryStorage } from '../storage/directory/directoryStorage.ts';
import { type HostManifest, hostManifestVersion, parseHostManifest } from '../storage/hostManifest.ts';
import { writeHostFiles } from './hostFiles.ts';

const file = 'network-inner.xml';
const definition = '<network><name>inner</name></network>\n';

/** A stored backup of a host with one network. */
async function stored(test: Test): Promise<{
  readonly storage: DirectoryStorage;
  readonly manifest: HostManifest;
  readonly directory: string;
}> {
  const sha256 = createHash('sha256').update(definition).digest('hex');
  const sizeBytes = definition.length;
  const manifest: HostManifest = {
    formatVersion: hostManifestVersion,
    kind: 'host',
    id: '01a1fa1b-a048-7000-8000-000000000001',
    writer: 'stillpoint test',
    host: { name: 'node-1', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: '2026-11-20T15:15:23.123Z',
    items: [{ kind: 'network', name: 'inner', file, sizeBytes, sha256, autostart: true }],
  };
  const storage = new DirectoryStorage({ name: 'local', path: test.testdir() });
  await storage.addHostBackup(manifest, new Map([[file, definition]]));
  const [entry] = await storage.hostBackups();
  if (entry?.manifest == null) throw new Error('it was not stored');
  return { storage, manifest: entry.manifest, directory: entry.directory };
}

void t.test('a restored host has its definitions and what says which file is what', async (t) => {
  const backup = await stored(t);
  const target = join(t.testdirName, 'restored');
  await writeHostFiles(backup.storage, backup, target);
  t.same((await readdir(target)).toSorted(), ['host.json', file]);
  t.equal(await readFile(join(target, file), 'utf8'), definition);
  const manifest = await readFile(join(target, 'host.json'), 'utf8');
  t.equal(manifest, await readFile(join(backup.directory, 'host.json'), 'utf8'), 'as it was stored');
  t.match(parseHostManifest(manifest).items, [{ name: 'inner', file, autostart: true }]);
});

void t.test('nothing is written over a manifest, or of files that were changed', async (t) => {
  const backup = await stored(t);
  const taken = join(t.testdirName, '~hosts');
  await writeFile(join(taken, 'host.json'), 'of another host');
  await t.rejects(writeHostFiles(backup.storage, backup, taken), {
    code: 'BACKUP_EXISTS',
    message: /host\.json exists/,
  });
  t.same((await readdir(taken)).toSorted(), ['host.json', 'node-1']);
  t.equal(await readFile(join(taken, 'host.json'), 'utf8'), 'of another host');

  await writeFile(join(backup.directory, file), 'changed');
  const target = join(t.testdirName, 'restored');
  await t.rejects(writeHostFiles(backup.storage, backup, target), { code: 'MANIFEST_INVALID' });
  await t.rejects(readdir(target), { code: 'ENOENT' });
});
