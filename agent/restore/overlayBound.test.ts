import { readFile, writeFile } from 'node:fs/promises';
import nodeFiles from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { extImage, lookStage, storeVolumes } from '../lookedFixture.ts';

void t.test('a journal that holds more than there is room for is refused', async (t) => {
  const stage = await lookStage(t);
  // Each of them is in another cluster of the overlay, which has 64 KiB.
  const [count, stride] = [128, 64];
  const image = await extImage(
    t,
    (root) => writeFile(join(root, 'log'), Buffer.alloc(count * stride * 1024, 'a')),
    {
      features: '^metadata_csum',
      sizeMiB: 64,
    },
  );
  const place = join(stage.directory, 'image');
  await writeFile(place, image);
  const { stdout } = await execa('debugfs', ['-R', 'blocks /log', place]);
  await writeFile(join(stage.directory, 'new'), Buffer.alloc(count * 1024, 'b'));
  const blocks = stdout
    .trim()
    .split(' ')
    .filter((_, index) => index % stride === 0);
  const commands = ['jo', `jw -b ${blocks.slice(0, count).join(',')} ${join(stage.directory, 'new')}`, 'jc'];
  await execa('debugfs', ['-w', '-f', '-', place], { input: `${commands.join('\n')}\n` });
  const entry = await storeVolumes(stage.storage('local'), stage.directory, { vda: await readFile(place) });
  const request = { entry, signal: new AbortController().signal };
  t.match(await stage.looked.list(request, '/log'), { files: [{ name: 'log' }] }, 'with room it is read');

  // As where little is free beside the sockets.
  const { statfs } = nodeFiles;
  t.teardown(() => {
    nodeFiles.statfs = statfs;
    syncBuiltinESMExports();
  });
  Object.assign(nodeFiles, { statfs: async () => ({ bavail: 2048, bsize: 4096 }) });
  syncBuiltinESMExports();
  await t.rejects(stage.looked.list(request, '/log'), {
    code: 'NOT_ENOUGH_DISK_SPACE',
    message: /needs more than 2/,
    hint: /df -h/,
  });
  t.same(await stage.looked.looks.list(), []);
});
