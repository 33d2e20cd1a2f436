import t from 'tap';
import { StorageError } from './errors.ts';
import { makeSample } from './directory/fixture.ts';
import { formatManifest, manifestDigest, parseManifest } from './manifest.ts';

/** The text of anything, with the digest that it would have as a manifest. */
function sealed(described: object): string {
  return JSON.stringify({ ...described, manifestSha256: manifestDigest(described) });
}

void t.test('a manifest reads back as it was written', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  t.same(parseManifest(formatManifest(manifest)), manifest);
});

void t.test('no change of a single bit in what a manifest says goes unnoticed', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  const text = Buffer.from(formatManifest(manifest));
  const unnoticed: string[] = [];
  for (let bit = 0; bit < text.length * 8; bit += 1) {
    const damaged = Buffer.from(text);
    damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    try {
      t.same(parseManifest(damaged.toString('utf8')), manifest);
      // White space between two values may be another one.
      if (!/\s/.test(text.toString('latin1', bit >> 3, (bit >> 3) + 1))) unnoticed.push(`bit ${bit}`);
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
    }
  }
  t.same(unnoticed, []);
});

void t.test('a machine may have any UUID that libvirt takes', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  // Neither version nor variant are those of RFC 9562.
  const machine = { ...manifest.machine, uuid: '6695eb01-f6a4-0304-09aa-97f2502e193f' };
  t.match(parseManifest(formatManifest({ ...manifest, machine })), { machine });
});

void t.test('a manifest that names a file outside of its backup is invalid', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  for (const file of ['../x', '/etc/passwd', 'a\0b', 'x'.repeat(300), '..', 'manifest.json']) {
    const hostile = { ...manifest, definition: { ...manifest.definition, file } };
    t.throws(() => parseManifest(sealed(hostile)), { code: 'MANIFEST_INVALID' }, JSON.stringify(file));
    t.throws(() => formatManifest(hostile), { code: 'MANIFEST_INVALID' });
  }
});

void t.test(
  'a manifest that contradicts itself or is from the future is refused with its own code',
  async (t) => {
    const { manifest } = await makeSample(t.testdir({}));
    const twice = { ...manifest, volumes: [...manifest.volumes, ...manifest.volumes] };
    t.throws(() => parseManifest(sealed(twice)), { code: 'MANIFEST_INVALID', message: /twice/ });
    const future = { formatVersion: 2, everything: 'is different' };
    t.throws(() => parseManifest(JSON.stringify(future)), { code: 'MANIFEST_TOO_NEW' });
    for (const text of [
      '',
      '{',
      '[]',
      'null',
      '{"formatVersion":0}',
      sealed({ ...manifest, surprise: 1 }),
      JSON.stringify(manifest),
    ])
      t.throws(() => parseManifest(text), { code: 'MANIFEST_INVALID' }, text.slice(0, 30));
  },
);

void t.test('a name that would lead a file elsewhere is not that of a machine', async (t) => {
  const { manifest } = await makeSample(t.testdir({}));
  for (const name of ['../../etc/x', 'a/b', 'a\nb', '']) {
    const machine = { ...manifest.machine, name };
    t.throws(() => parseManifest(formatManifest({ ...manifest, machine })), { code: 'MANIFEST_INVALID' });
  }
});
