import t from 'tap';
import { makeSample } from './directory/fixture.ts';
import { formatManifest, parseManifest } from './manifest.ts';

void t.test('a manifest reads back as it was written', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  t.same(parseManifest(formatManifest(manifest)), manifest);
});

void t.test('a manifest that names a file outside of its backup is invalid', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  for (const file of ['../x', '/etc/passwd', 'a\0b', 'x'.repeat(300), '..', 'manifest.json']) {
    const hostile = { ...manifest, definition: { ...manifest.definition, file } };
    t.throws(
      () => parseManifest(JSON.stringify(hostile)),
      { code: 'MANIFEST_INVALID' },
      JSON.stringify(file),
    );
    t.throws(() => formatManifest(hostile), { code: 'MANIFEST_INVALID' });
  }
});

void t.test(
  'a manifest that contradicts itself or is from the future is refused with its own code',
  async (t) => {
    const { manifest } = await makeSample(t.testdir({}));
    const twice = { ...manifest, volumes: [...manifest.volumes, ...manifest.volumes] };
    t.throws(() => parseManifest(JSON.stringify(twice)), { code: 'MANIFEST_INVALID', message: /twice/ });
    const future = { formatVersion: 2, everything: 'is different' };
    t.throws(() => parseManifest(JSON.stringify(future)), { code: 'MANIFEST_TOO_NEW' });
    for (const text of [
      '',
      '{',
      '[]',
      'null',
      '{"formatVersion":0}',
      JSON.stringify({ ...manifest, surprise: 1 }),
    ])
      t.throws(() => parseManifest(text), { code: 'MANIFEST_INVALID' }, text.slice(0, 30));
  },
);
