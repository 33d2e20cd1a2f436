import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import type { Throttle } from '../../common/throttle.ts';
import { DirectoryStorage } from './directoryStorage.ts';
import { machine, makeSample, storeSample } from './fixture.ts';
import { GeneratedSource, turns } from './volumeFixture.ts';

const mebibyte = 1024 * 1024;

/** Counts what passes it. */
class Meter implements Throttle {
  takenBytes = 0;

  take(bytes: number): Promise<void> {
    this.takenBytes += bytes;
    return Promise.resolve();
  }

  /** What has passed since the last time that somebody asked. */
  read(): number {
    const taken = this.takenBytes;
    this.takenBytes = 0;
    return taken;
  }
}

void t.test('whatever goes into a directory or is read there passes its bandwidth', async (t) => {
  const work = t.testdir();
  const [path, file] = [join(work, 'root'), join(work, 'file')];
  await mkdir(path);
  await writeFile(file, Buffer.alloc(9 * mebibyte, 7));
  const meter = new Meter();
  const storage = new DirectoryStorage({ name: 'local', path, bandwidth: meter });
  const writer = await storage.begin({ jobId: newId(), machine });
  const source = new GeneratedSource(16 * mebibyte, turns([10 * mebibyte, 16 * mebibyte], false));

  const { sizeBytes } = await writer.addVolume(source, 'v');
  t.equal(meter.read(), sizeBytes, 'a volume, as much as is stored of it');
  await writer.addByCopy(file, 'whole');
  t.equal(meter.read(), 9 * mebibyte, 'a file');
  await writer.addByCopy(file, 'chunks', { digest: 'chunks' });
  t.equal(meter.read(), 9 * mebibyte, 'an image');

  const entry = await storeSample(storage, await makeSample(work));
  const manifest = entry.manifest ?? t.fail('no manifest');
  if (typeof manifest === 'boolean') return;
  meter.read();
  const [volume] = manifest.volumes;
  t.ok((await storage.verify(entry, { data: true })).ok);
  t.ok(meter.read() >= (volume?.storedBytes ?? 0), 'reading every byte of a backup');
  const artifact = {
    path: join(entry.directory, volume?.file ?? ''),
    sizeBytes: volume?.storedBytes ?? 0,
    sha256: volume?.sha256 ?? '',
  };
  await storage.copyOut(artifact, join(work, 'out'), { as: 'volume' });
  t.equal(meter.read(), artifact.sizeBytes, 'what is restored');
});
