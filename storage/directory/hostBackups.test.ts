import { createHash } from 'node:crypto';
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { type HostManifest, hostManifestVersion } from '../hostManifest.ts';
import { DirectoryStorage } from './directoryStorage.ts';

const pointInTime = '2026-11-20T15:15:23.123Z';
const definition = '<network><name>inner</name></network>';

function described(): { readonly manifest: HostManifest; readonly files: ReadonlyMap<string, string> } {
  const file = 'network-inner.xml';
  const manifest: HostManifest = {
    formatVersion: hostManifestVersion,
    kind: 'host',
    id: newId(),
    writer: 'test',
    host: { name: 'node/1', libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime,
    items: [
      {
        kind: 'network',
        name: 'inner',
        file,
        sizeBytes: definition.length,
        sha256: createHash('sha256').update(definition).digest('hex'),
        autostart: true,
      },
    ],
  };
  return { manifest, files: new Map([[file, definition]]) };
}

void t.test('the backup of a host is written whole, listed, and no machine', async (t) => {
  const root = t.testdir();
  const storage = new DirectoryStorage({ name: 'local', path: root });
  const { manifest, files } = described();
  const directory = await storage.addHostBackup(manifest, files);
  t.equal(directory, join(root, '~hosts/node%2F1/20261120T151523.123Z'));
  t.same((await readdir(directory)).toSorted(), ['host.json', 'network-inner.xml']);
  t.equal((await stat(join(directory, 'network-inner.xml'))).mode & 0o777, 0o600);
  t.match(await storage.hostBackups(), [{ directory, pointInTime, manifest, problem: null }]);
  t.same(await storage.list(), []);
  t.same(await storage.partials(), []);
  await t.rejects(storage.addHostBackup(manifest, files), { code: 'BACKUP_EXISTS' });
});

void t.test('a failure leaves nothing, and damage is seen', async (t) => {
  const root = t.testdir();
  const storage = new DirectoryStorage({ name: 'local', path: root });
  const { manifest, files } = described();
  await t.rejects(storage.addHostBackup(manifest, new Map()));
  t.same(await readdir(join(root, '~hosts/node%2F1')), []);
  const directory = await storage.addHostBackup(manifest, files);
  await writeFile(join(directory, 'network-inner.xml'), definition.replace('inner', 'outer'));
  t.match(await storage.hostBackups(), [{ problem: /network-inner.xml was damaged/ }]);
  await writeFile(join(directory, 'host.json'), JSON.stringify({ ...manifest, writer: 'somebody else' }));
  t.match(await storage.hostBackups(), [{ manifest: null, problem: /digest/ }]);
  await mkdir(join(root, '~hosts/node%2F1/20261120T151524.000Z'));
  t.match(await storage.hostBackups(), [{}, { manifest: null, problem: /host.json/ }]);
});
