import { createHash } from 'node:crypto';
import { mkdir, readdir, stat, utimes, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
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
  t.match(await storage.hostBackups(), [{ host: 'node/1', manifest: null, problem: /digest/ }]);
  await mkdir(join(root, '~hosts/node%2F1/20261120T151524.000Z'));
  t.match(await storage.hostBackups(), [{}, { manifest: null, problem: /host.json/ }]);
});

void t.test(
  'it can be deleted, a deletion that was interrupted is finished, and nothing else goes',
  async (t) => {
    const root = t.testdir();
    const storage = new DirectoryStorage({ name: 'local', path: root });
    const { manifest, files } = described();
    const directory = await storage.addHostBackup(manifest, files);
    await mkdir(join(root, 'web-1/20261120T151523.123Z'), { recursive: true });
    for (const elsewhere of [root, join(root, '~hosts/node%2F1'), join(root, 'web-1/20261120T151523.123Z')])
      await t.rejects(storage.deleteHostBackup({ directory: elsewhere }), { code: 'BACKUP_NOT_FOUND' });
    await storage.deleteHostBackup({ directory });
    t.same(await storage.hostBackups(), []);
    t.same(await readdir(join(root, '~hosts/node%2F1')), []);
    await t.rejects(storage.deleteHostBackup({ directory }), { code: 'BACKUP_NOT_FOUND' });
    await mkdir(join(root, '~hosts/node%2F1/.deleting-20261120T151523.123Z'));
    await storage.addHostBackup(manifest, files);
    t.same(await readdir(join(root, '~hosts/node%2F1')), ['20261120T151523.123Z']);
  },
);

void t.test(
  'what a killed writer has left goes with the next one, and what is being written stays',
  async (t) => {
    const root = t.testdir();
    const storage = new DirectoryStorage({ name: 'local', path: root });
    const { manifest, files } = described();
    const parent = join(root, '~hosts/node%2F1');
    const [dead, living] = [join(parent, `.partial-${newId()}`), join(parent, `.partial-${newId()}`)];
    for (const directory of [dead, living]) await mkdir(directory, { recursive: true });
    const longAgo = Date.now() / 1000 - 4000;
    await utimes(dead, longAgo, longAgo);
    await storage.addHostBackup(manifest, files);
    t.same((await readdir(parent)).toSorted(), [basename(living), '20261120T151523.123Z']);
  },
);
