import t from 'tap';
import { makeSample } from '../storage/directory/fixture.ts';
import { restoreByHand } from './restoreByHand.ts';

void t.test('a volume that the machine opens as raw is not copied as qcow2 by hand', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  const text = restoreByHand('/backups/vm', manifest).join('\n');
  t.match(text, /type='raw'.*instead of cp:\n# {3}qemu-img convert -f qcow2 -O raw/);
  t.match(text, 'qemu-img check');
  const volumes = manifest.volumes.map((volume) => ({ ...volume, format: 'raw' as const }));
  const raw = restoreByHand('/backups/vm', { ...manifest, volumes }).join('\n');
  t.notMatch(raw, 'qemu-img', 'what is stored as raw is put back as it stands');
});
