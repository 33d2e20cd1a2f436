import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { rewriteSaveImage } from './saveImage.ts';

interface ImageParts {
  readonly magic?: string;
  readonly version?: number;
  readonly definition?: string;
  readonly cookie?: string;
  readonly paddingBytes?: number;
  readonly compressed?: number;
  readonly dataBytes?: number;
  readonly cookieOffset?: number;
  readonly stream?: Buffer;
}

/** A save image as libvirt writes it. */
function imageOf(parts: ImageParts = {}): Buffer {
  const {
    definition = '<domain>old</domain>',
    cookie,
    paddingBytes = 100,
    stream = Buffer.from('QEVM'.repeat(1000)),
  } = parts;
  const xml = Buffer.from(`${definition}\0`);
  const data = Buffer.concat([
    xml,
    Buffer.from(cookie === undefined ? '' : `${cookie}\0`),
    Buffer.alloc(paddingBytes),
  ]);
  const header = Buffer.alloc(92);
  header.write(parts.magic ?? 'LibvirtQemudSave', 'latin1');
  header.writeUInt32LE(parts.version ?? 2, 16);
  header.writeUInt32LE(parts.dataBytes ?? data.length, 20);
  header.writeUInt32LE(1, 24);
  header.writeUInt32LE(parts.compressed ?? 0, 28);
  header.writeUInt32LE(parts.cookieOffset ?? (cookie === undefined ? 0 : xml.length), 32);
  return Buffer.concat([header, data, stream]);
}

/** The parts of an image, read as libvirt reads them. */
function partsOf(image: Buffer) {
  const dataBytes = image.readUInt32LE(20);
  const cookieOffset = image.readUInt32LE(32);
  const data = image.subarray(92, 92 + dataBytes);
  const text = (at: number): string => data.toString('utf8', at, data.indexOf(0, at));
  return {
    dataBytes,
    definition: text(0),
    cookie: cookieOffset === 0 ? undefined : text(cookieOffset),
    running: image.readUInt32LE(24),
    stream: image.subarray(92 + dataBytes),
  };
}

async function rewritten(
  test: Test,
  image: Buffer,
  change: (original: string) => string,
  signal = new AbortController().signal,
): Promise<Buffer> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-saveimage-'));
  test.teardown(() => rm(directory, { recursive: true }));
  const [from, to] = [join(directory, 'from'), join(directory, 'to')];
  await writeFile(from, image);
  const sha256 = createHash('sha256').update(image).digest('hex');
  try {
    await rewriteSaveImage({ from, to, sha256, definition: change, signal });
  } catch (error) {
    test.same(await readdir(directory), ['from'], 'nothing is left of a failed one');
    throw error;
  }
  test.equal((await stat(to)).mode & 0o777, 0o600);
  test.same(await readFile(from), image, 'the stored one is never changed');
  return readFile(to);
}

void t.test(
  'a shorter, an equal and a longer definition take the old one’s place; all else stays',
  async (t) => {
    for (const cookie of [undefined, '<cookie>é</cookie>']) {
      for (const definition of [
        '<d/>',
        '<domain>new</domain>',
        `<domain>${'ü'.repeat(60)}</domain>`,
        `<domain>${'x'.repeat(200_000)}</domain>`,
      ]) {
        const before = imageOf(cookie === undefined ? {} : { cookie });
        const after = await rewritten(t, before, (original) => {
          t.equal(original, '<domain>old</domain>');
          return definition;
        });
        const { stream, dataBytes, ...parts } = partsOf(after);
        t.same(parts, { definition, cookie, running: 1 });
        t.ok(stream.equals(partsOf(before).stream), 'the memory is the same');
        const fits =
          Buffer.byteLength(definition) + 1 + (cookie === undefined ? 0 : Buffer.byteLength(cookie) + 1) <=
          partsOf(before).dataBytes;
        if (fits) t.equal(dataBytes, partsOf(before).dataBytes, 'and where it was');
        t.equal(after.length - before.length, dataBytes - partsOf(before).dataBytes);
      }
    }
  },
);

void t.test(
  'in a format with absolute offsets nothing is moved: a longer definition is refused',
  async (t) => {
    const image = imageOf({ compressed: 6 });
    t.equal(
      partsOf(await rewritten(t, image, () => '<domain>new</domain>')).definition,
      '<domain>new</domain>',
    );
    await t.rejects(
      rewritten(t, image, () => 'x'.repeat(1000)),
      { code: 'STATE_FORMAT_UNSUPPORTED', hint: /--start boot/ },
    );
  },
);

void t.test('a hostile or damaged header is refused without reading where it points', async (t) => {
  const hostile: readonly (readonly [string, Buffer])[] = [
    ['empty', Buffer.alloc(0)],
    ['shorter than a header', imageOf().subarray(0, 91)],
    ['an unfinished save', imageOf({ magic: 'LibvirtQemudPart' })],
    ['something else', Buffer.alloc(4096, 'x')],
    ['version 3', imageOf({ version: 3 })],
    ['big-endian version', imageOf({ version: 0x0200_0000 })],
    ['no definition', imageOf({ dataBytes: 0 })],
    ['a definition of 4 GiB', imageOf({ dataBytes: 0xffff_ffff })],
    ['a definition of 17 MiB', imageOf({ dataBytes: 17 * 2 ** 20 })],
    ['a definition that ends after the file', imageOf({ dataBytes: 1_000_000 })],
    ['a cookie outside of the data', imageOf({ cookieOffset: 100_000 })],
    ['a cookie at 4 GiB', imageOf({ cookieOffset: 0xffff_ffff })],
    ['a definition without end', imageOf({ definition: 'x'.repeat(200), dataBytes: 100 })],
  ];
  for (const [name, image] of hostile)
    await t.rejects(
      rewritten(t, image, (xml) => xml),
      { code: 'STATE_FORMAT_UNSUPPORTED' },
      name,
    );
});

void t.test('a state that is not what was stored is never handed out', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-saveimage-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const image = imageOf();
  const sha256 = createHash('sha256').update(image).digest('hex');
  for (const at of [95, image.length - 1]) {
    const damaged = Buffer.from(image);
    damaged.writeUInt8(damaged.readUInt8(at) ^ 1, at);
    const [from, to] = [join(directory, 'from'), join(directory, 'to')];
    await writeFile(from, damaged);
    const options = {
      from,
      to,
      sha256,
      definition: (xml: string) => xml,
      signal: new AbortController().signal,
    };
    await t.rejects(rewriteSaveImage(options), { code: 'BACKUP_DAMAGED' }, `byte ${at}`);
    t.same(await readdir(directory), ['from']);
  }
  await t.rejects(
    rewritten(t, imageOf(), (xml) => xml, AbortSignal.abort()),
    { name: 'AbortError' },
  );
});
