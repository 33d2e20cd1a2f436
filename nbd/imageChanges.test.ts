import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import type { Change } from '../common/volumeSource.ts';
import { changesOf, type ImageUnits } from './changes.ts';
import { qemuImg, qemuIo, randomFrom, serveByDaemon, workDirectory } from './fixture.ts';
import { NbdVolume } from './volume.ts';

/* What QEMU notes in a bitmap, and what it does not: real images, whose content before and after is compared. */

const KiB = 1024;
const MiB = 1024 * KiB;
const sizeBytes = 24 * MiB;
const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);
const random = randomFrom(seed);
const below = (limit: number): number => Math.floor(random() * limit);

/** Commands of qemu-io that write, zero and discard somewhere. */
function someWrites(count: number): readonly string[] {
  return Array.from({ length: count }, () => {
    const offset = below(sizeBytes / 512) * 512;
    const length = Math.min(sizeBytes - offset, (below(2 * MiB) + 1) & ~511 || 512);
    const kind = ['write -z', 'write -z -u', 'discard', `write -P ${below(255) + 1}`][below(4)] ?? '';
    return `${kind} ${offset} ${length}`;
  });
}

async function contentOf(path: string): Promise<Buffer> {
  const raw = `${path}.raw`;
  await qemuImg('convert', '-f', 'qcow2', '-O', 'raw', path, raw);
  return readFile(raw);
}

interface ImageForm {
  readonly clusterBytes: number;
  readonly isBacked: boolean;
  /** Of 1/32 cluster each (QEMU: extended_l2). */
  readonly hasSubclusters?: boolean;
}

/** An empty image, or one that stands on a template without zeros. */
async function makeImage(
  path: string,
  { clusterBytes, isBacked, hasSubclusters = false }: ImageForm,
): Promise<void> {
  const template = join(dirname(path), 'template.raw');
  if (isBacked) await writeFile(template, Buffer.alloc(sizeBytes, 0xaa));
  const base = isBacked ? ['-b', template, '-F', 'raw'] : [];
  const extended = hasSubclusters ? ',extended_l2=on' : '';
  const options = ['-q', '-f', 'qcow2', '-o', `cluster_size=${clusterBytes}${extended}`];
  await qemuImg('create', ...options, ...base, path, `${sizeBytes}`);
}

/** Cuts the image somewhere, and gives it its size again. */
async function shrinkAndGrow(path: string): Promise<void> {
  await qemuImg('resize', '-q', '-f', 'qcow2', '--shrink', path, `${(1 + below(sizeBytes / 512 - 1)) * 512}`);
  await qemuImg('resize', '-q', '-f', 'qcow2', path, `${sizeBytes}`);
}

/** The first chunk that differs and would be taken from the parent: nothing told touches it, or not all is zeros. */
function missed(
  { before, after }: { readonly before: Buffer; readonly after: Buffer },
  changes: readonly Change[],
  chunkBytes: number,
): number | null {
  for (let start = 0; start < sizeBytes; start += chunkBytes) {
    const end = start + chunkBytes;
    if (before.subarray(start, end).equals(after.subarray(start, end))) continue;
    const touching = changes.filter(
      ({ offsetBytes, lengthBytes }) => offsetBytes < end && offsetBytes + lengthBytes > start,
    );
    const isAllZeros = touching.some(
      ({ offsetBytes, lengthBytes }) => offsetBytes <= start && offsetBytes + lengthBytes >= end,
    );
    if (!isAllZeros && touching.every(({ unmarked }) => unmarked === true)) return start;
  }
  return null;
}

const rounds = 6;
/** Not so many as are reckoned with (`cuts`), which small images would be read whole for. */
const cuts = 4;

const forms: readonly ImageForm[] = [
  { clusterBytes: 64 * KiB, isBacked: false },
  { clusterBytes: 4 * KiB, isBacked: false },
  { clusterBytes: 2 * MiB, isBacked: false },
  { clusterBytes: 64 * KiB, isBacked: true },
  { clusterBytes: 2 * MiB, isBacked: true },
  { clusterBytes: 128 * KiB, isBacked: false, hasSubclusters: true },
  { clusterBytes: 128 * KiB, isBacked: true, hasSubclusters: true },
];

for (const form of forms)
  void t.test(
    `${form.clusterBytes / KiB} KiB${form.hasSubclusters === true ? ' of subclusters' : ''}${form.isBacked ? ', on a template' : ''}: no change is left out`,
    async (t) => {
      const directory = await workDirectory(t);
      for (let round = 0; round < rounds; round += 1) {
        const path = join(directory, `${round}.qcow2`);
        await makeImage(path, form);
        await qemuIo(path, 'qcow2', someWrites(20));
        await qemuImg('bitmap', '--add', '-f', 'qcow2', path, 'since');
        const before = await contentOf(path);
        for (let shrinks = below(cuts + 1); shrinks > 0; shrinks -= 1) {
          await qemuIo(path, 'qcow2', someWrites(below(4)));
          await shrinkAndGrow(path);
        }
        await qemuIo(path, 'qcow2', someWrites(below(6)));
        const { changes } = await changesIn(t, path, { ...form, cuts });
        const content = { before, after: await contentOf(path) };
        for (const chunkBytes of [64 * KiB, MiB])
          t.equal(
            missed(content, changes, chunkBytes),
            null,
            `round ${round}, chunks of ${chunkBytes / KiB} KiB`,
          );
      }
    },
  );

/** What is told of an image that has a bitmap `since`. */
async function changesIn(t: Test, path: string, units: ImageUnits): Promise<Told> {
  const socketPath = await serveByDaemon(t, dirname(path), { path, bitmaps: ['since'] });
  const context = 'qemu:dirty-bitmap:since';
  const where = { socketPath, exportName: 'vda', answerMs: 20_000, dirtyContexts: [context] };
  await using volume = await NbdVolume.open(where);
  const dirty = await volume.dirtyExtents(context);
  const isMarked = dirty.some(({ dirty: marked }) => marked);
  return { isMarked, changes: changesOf(dirty, await volume.extents(), units) };
}

interface Told {
  /** The bitmap has any mark. */
  readonly isMarked: boolean;
  readonly changes: readonly Change[];
}

void t.test(
  'a shrink within a large cluster keeps data that it takes the marks of: docs/BEHAVIOUR.md',
  async (t) => {
    const directory = await workDirectory(t);
    const path = join(directory, 'cut.qcow2');
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', path, `${sizeBytes}`);
    await qemuIo(path, 'qcow2', [`write -P 1 0 ${sizeBytes}`]);
    await qemuImg('bitmap', '--add', '-f', 'qcow2', path, 'since');
    await qemuIo(path, 'qcow2', ['write -P 2 5M 512k']);
    await qemuImg('resize', '-q', '-f', 'qcow2', '--shrink', path, `${4 * MiB + 128 * KiB}`);
    await qemuImg('resize', '-q', '-f', 'qcow2', path, `${sizeBytes}`);
    const after = await contentOf(path);
    t.ok(
      after.subarray(5 * MiB, 5.5 * MiB).equals(Buffer.alloc(MiB / 2, 2)),
      'it was written after the bitmap',
    );
    const { isMarked, changes } = await changesIn(t, path, { clusterBytes: 2 * MiB, cuts: 1 });
    t.notOk(isMarked, 'and no mark tells');
    t.same(changes[0], { offsetBytes: 4 * MiB, lengthBytes: 2 * MiB, zero: false, unmarked: false });
  },
);

void t.test('what a shrink and a growth have made zeros is a change that no mark tells', async (t) => {
  const path = join(await workDirectory(t), 'cut.qcow2');
  await qemuImg('create', '-q', '-f', 'qcow2', path, `${sizeBytes}`);
  await qemuIo(path, 'qcow2', [`write -P 1 1M ${sizeBytes - MiB}`]);
  await qemuImg('bitmap', '--add', '-f', 'qcow2', path, 'since');
  const keptBytes = 20 * MiB + 192 * KiB;
  await qemuImg('resize', '-q', '-f', 'qcow2', '--shrink', path, `${keptBytes}`);
  await qemuImg('resize', '-q', '-f', 'qcow2', path, `${sizeBytes}`);
  t.same(await changesIn(t, path, { clusterBytes: 64 * KiB, cuts: 1 }), {
    isMarked: false,
    changes: [
      { offsetBytes: 0, lengthBytes: MiB, zero: true, unmarked: true },
      { offsetBytes: keptBytes - 64 * KiB, lengthBytes: 64 * KiB, zero: false, unmarked: false },
      { offsetBytes: keptBytes, lengthBytes: sizeBytes - keptBytes, zero: true, unmarked: false },
    ],
  });
});

void t.test(
  'a cut within a cluster makes its rest zeros where there is a template, without a mark',
  async (t) => {
    const path = join(await workDirectory(t), 'cut.qcow2');
    await makeImage(path, { clusterBytes: 64 * KiB, isBacked: true });
    await qemuImg('bitmap', '--add', '-f', 'qcow2', path, 'since');
    const before = await contentOf(path);
    await qemuImg('resize', '-q', '-f', 'qcow2', '--shrink', path, `${4 * MiB + 32 * KiB}`);
    await qemuImg('resize', '-q', '-f', 'qcow2', path, `${sizeBytes}`);
    const changed = (await contentOf(path)).findIndex((byte, at) => byte !== before[at]);
    t.equal(changed, 4 * MiB + 32 * KiB);
    const { isMarked, changes } = await changesIn(t, path, { clusterBytes: 64 * KiB, cuts: 1 });
    t.notOk(isMarked);
    t.same(changes[0], { offsetBytes: 4 * MiB, lengthBytes: 64 * KiB, zero: false, unmarked: false });
  },
);
