import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import * as fc from 'fast-check';
import t from 'tap';
import type { Extent } from '../volumeSource.ts';
import { clusterBytes, metadataClusters, planQcow2, storedRuns } from './layout.ts';
import type { Qcow2Layout } from './layout.ts';

const gibibyte = 1024 ** 3;
const tebibyte = 1024 ** 4;

/** Extents that end at these positions, the kinds taking turns and beginning with `zero`. */
function turns(ends: readonly number[], zero: boolean): readonly Extent[] {
  return ends
    .map((end, index) => {
      const offsetBytes = ends[index - 1] ?? 0;
      return { offsetBytes, lengthBytes: end - offsetBytes, zero: zero === (index % 2 === 0) };
    })
    .filter(({ lengthBytes }) => lengthBytes > 0);
}

function totalClusters({ clusters }: Qcow2Layout): number {
  const { refcountTable, refcountBlocks, l1Table, l2Tables, data } = clusters;
  return 1 + refcountTable + refcountBlocks + l1Table + l2Tables + data;
}

void t.test('exactly the clusters are stored that are not zero throughout', (t) => {
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  const size = fc.integer({ min: 1, max: 4096 }).map((sectors) => sectors * 512);
  fc.assert(
    fc.property(
      size,
      fc.uniqueArray(fc.integer({ min: 1, max: 4096 * 512 }), { maxLength: 40 }),
      fc.boolean(),
      (sizeBytes, cuts, zero) => {
        const positions = cuts.filter((cut) => cut < sizeBytes).toSorted((a, b) => a - b);
        const extents = turns([...positions, sizeBytes], zero);
        const stored = new Set<number>();
        for (const extent of extents)
          for (let at = extent.offsetBytes; at < extent.offsetBytes + extent.lengthBytes; at += 1)
            if (extent.zero) break;
            else stored.add(Math.floor(at / clusterBytes));
        const runs = [...storedRuns(extents)];
        const planned = runs.flatMap(({ first, end }) =>
          Array.from({ length: end - first }, (_, index) => first + index),
        );
        if (planned.join(' ') !== [...stored].join(' '))
          throw new Error(`${planned.join(' ')} are stored instead of ${[...stored].join(' ')}`);
        if (runs.some(({ first }, index) => index > 0 && first <= (runs[index - 1]?.end ?? 0)))
          throw new Error('runs that touch are not joined');
        if (planQcow2(sizeBytes, extents).clusters.data !== stored.size) throw new Error('wrong count');
      },
    ),
    { seed, numRuns: 200 },
  );
  t.end();
});

void t.test('what a source leaves out, says twice or invents is refused, never taken for zeros', (t) => {
  const data = (offsetBytes: number, lengthBytes: number): Extent => ({
    offsetBytes,
    lengthBytes,
    zero: false,
  });
  const refused: readonly (readonly [number, readonly Extent[], RegExp])[] = [
    [8192, [], /end at 0, the volume at 8192/],
    [8192, [data(0, 4096)], /end at 4096, the volume at 8192/],
    [8192, [data(0, 4096), data(4096, 8192)], /end at 12288, the volume at 8192/],
    [8192, [data(0, 1024), data(2048, 6144)], /go on at 2048 instead of 1024/],
    [8192, [data(0, 4096), data(2048, 6144)], /go on at 2048 instead of 4096/],
    [8192, [data(512, 7680)], /go on at 512 instead of 0/],
    [8192, [data(0, 4096), data(4096, 0), data(4096, 4096)], /has 0 bytes/],
    [8192, [data(0, 12288), data(12288, -4096)], /has -4096 bytes/],
    [8192, [data(0, Number.NaN)], /has NaN bytes/],
    [8192, [data(0, 4096.5), data(4096.5, 4095.5)], /has 4096.5 bytes/],
    [0, [data(0, 512)], /end at 512, the volume at 0/],
    [1000, [data(0, 1000)], /no size for a qcow2 image/],
    [-512, [], /no size for a qcow2 image/],
    [Number.NaN, [], /no size for a qcow2 image/],
    [2048 * tebibyte, [data(0, 2048 * tebibyte)], /is larger than/],
  ];
  for (const [sizeBytes, extents, message] of refused)
    t.throws(() => planQcow2(sizeBytes, extents), message, JSON.stringify(extents));
  t.end();
});

void t.test('an empty volume and a full one of 64 TiB are planned without a list of clusters', (t) => {
  t.equal(planQcow2(0, []).fileSizeBytes, 4 * clusterBytes, 'header, refcount table and block, L1 table');
  const size = 64 * tebibyte;
  const full = planQcow2(size, [{ offsetBytes: 0, lengthBytes: size, zero: false }]);
  t.equal(full.clusters.data, size / clusterBytes);
  t.equal(full.clusters.l2Tables, size / (512 * 1024 * 1024));
  t.equal(full.clusters.l1Table, 16);
  t.equal(full.clusters.refcountTable, 5, 'one for 16 TiB of the file, whose tables come on top');
  t.equal(full.fileSizeBytes, totalClusters(full) * clusterBytes);
  t.ok(full.clusters.refcountBlocks * 32_768 >= totalClusters(full), 'every cluster has a refcount');
  t.ok((full.clusters.refcountBlocks - 1) * 32_768 < totalClusters(full), 'with no block too many');
  t.end();
});

void t.test('the refcounts cover themselves at every size around the end of a block', (t) => {
  const wrong: number[] = [];
  for (let clusters = 32_600; clusters <= 32_800; clusters += 1) {
    const size = clusters * clusterBytes;
    const layout = planQcow2(size, [{ offsetBytes: 0, lengthBytes: size, zero: false }]);
    if (layout.clusters.refcountBlocks !== Math.ceil(totalClusters(layout) / 32_768)) wrong.push(clusters);
  }
  t.same(wrong, []);
  t.end();
});

void t.test('qemu-img finds no error in the tables, however large the volume', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const spots = (sizeBytes: number, positions: readonly number[]): readonly Extent[] =>
    turns([...positions.flatMap((position) => [position, position + 4096]), sizeBytes], true);
  const half = 512 * 1024 * 1024;
  const volumes: Record<string, readonly [number, readonly Extent[]]> = {
    'full, with 3 refcount blocks': [5 * gibibyte, turns([5 * gibibyte], false)],
    'data at both sides of the ends of L2 tables': [
      4 * gibibyte,
      spots(4 * gibibyte, [half - 4096, half, 3 * half - 4096, 5 * half - 8192, 7 * half]),
    ],
    'several runs in one L2 table, one run across two': [
      2 * gibibyte,
      turns(
        [
          4096,
          clusterBytes * 3,
          clusterBytes * 5,
          half - 4096,
          half + 4096,
          half + 500_000,
          half * 3,
          half * 4,
        ],
        false,
      ),
    ],
    'with several clusters of L1 table, the first and the last empty': [
      20 * tebibyte,
      spots(20 * tebibyte, [5 * tebibyte, 9 * tebibyte + 65_000]),
    ],
    '64 TiB, nearly empty': [64 * tebibyte, spots(64 * tebibyte, [0, 33 * tebibyte, 64 * tebibyte - 4096])],
    '1 PiB, empty': [1024 * tebibyte, turns([1024 * tebibyte], true)],
  };
  for (const [name, [sizeBytes, extents]] of Object.entries(volumes)) {
    const path = join(directory, 'image.qcow2');
    const layout = planQcow2(sizeBytes, extents);
    const file = await open(path, 'w');
    let clusters = 0;
    for (const cluster of metadataClusters(layout)) {
      await file.write(cluster, 0, cluster.length, clusters * clusterBytes);
      clusters += 1;
    }
    await file.truncate(layout.fileSizeBytes);
    await file.close();
    t.equal(clusters + layout.clusters.data, layout.fileSizeBytes / clusterBytes, name);
    const { stdout } = await execa('qemu-img', ['check', '-f', 'qcow2', '--output=json', path], {
      timeout: 60_000,
    });
    const found: unknown = JSON.parse(stdout);
    t.match(found, { 'check-errors': 0, 'image-end-offset': layout.fileSizeBytes });
    t.notMatch(found, { leaks: Number });
    t.notMatch(found, { corruptions: Number });
    const info = await execa('qemu-img', ['info', '-f', 'qcow2', '--output=json', path], {
      timeout: 60_000,
    });
    t.match(JSON.parse(info.stdout), {
      'virtual-size': sizeBytes,
      'cluster-size': clusterBytes,
      'format-specific': { data: { compat: '1.1', 'refcount-bits': 16, corrupt: false } },
    });
  }
});

void t.test('the time goes with the number of extents, and their memory is all that is needed', (t) => {
  const size = 64 * tebibyte;
  const count = 400_000;
  const pitch = (size / count) * 2;
  const aligned = pitch - (pitch % clusterBytes);
  const positions: number[] = [];
  for (let at = aligned; at < size; at += aligned) positions.push(at, at + 512);
  const extents = turns([...positions, size], true);
  t.ok(extents.length > count);
  const startedAt = performance.now();
  const layout = planQcow2(size, extents);
  const elapsedMs = performance.now() - startedAt;
  t.comment(`${extents.length} extents planned in ${Math.round(elapsedMs)} ms`);
  t.equal(layout.clusters.data, positions.length / 2);
  t.ok(elapsedMs < 5000, `${elapsedMs} ms`);
  t.end();
});
