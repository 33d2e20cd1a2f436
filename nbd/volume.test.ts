import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import * as z from 'zod';
import type { Extent } from '../common/volumeSource.ts';
import { FakeServer, dataChunk, honestBytes, optionReply, statusChunk, u16, u64 } from './fakeServer.ts';
import {
  qemuImg,
  qemuIo,
  randomFrom,
  readFrom,
  serveByDaemon,
  serveImage,
  workDirectory,
} from './fixture.ts';
import { NbdClient } from './client.ts';
import { NbdVolume } from './volume.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const answerMs = 20_000;
const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);

const openVolume = (socketPath: string, dirtyContexts: readonly string[] = []): Promise<NbdVolume> =>
  NbdVolume.open({ socketPath, exportName: 'vda', answerMs, dirtyContexts, connections: 3 });

/** The whole volume, read as a backup reads it: the extents that are data, all at once, the others as zeros. */
async function readAll(volume: NbdVolume): Promise<Buffer> {
  const whole = Buffer.alloc(volume.virtualSizeBytes);
  const data = (await volume.extents()).filter(({ zero }) => !zero);
  await Promise.all(
    data.map(async ({ offsetBytes, lengthBytes }) => {
      (await readFrom(volume, offsetBytes, lengthBytes)).copy(whole, offsetBytes);
    }),
  );
  return whole;
}

const mapSchema = z.array(z.object({ start: z.number(), length: z.number(), zero: z.boolean() }));

/** What `qemu-img map` says of the image itself, joined as we join. */
async function mapOf(path: string, format: string): Promise<readonly Extent[]> {
  const parsed = mapSchema.parse(JSON.parse(await qemuImg('map', '--output=json', '-f', format, path)));
  const joined: { offsetBytes: number; lengthBytes: number; zero: boolean }[] = [];
  for (const { start, length, zero } of parsed) {
    const last = joined.at(-1);
    if (last?.zero === zero) last.lengthBytes += length;
    else joined.push({ offsetBytes: start, lengthBytes: length, zero });
  }
  return joined;
}

/** A qcow2 image with random bytes, zeros and discarded parts, and its content by `qemu-img`. */
async function randomImage(directory: string, sizeBytes: number): Promise<{ path: string; content: Buffer }> {
  const random = randomFrom(seed);
  const below = (limit: number): number => Math.floor(random() * limit);
  const raw = join(directory, 'random.raw');
  const file = await open(raw, 'w');
  await file.truncate(sizeBytes);
  for (let piece = 0; piece < 60; piece += 1) {
    const data = Buffer.from(Uint8Array.from({ length: below(100_000) + 1 }, () => below(256)));
    await file.write(data, 0, data.length, below(sizeBytes - data.length));
  }
  await file.close();
  const path = join(directory, 'random.qcow2');
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw, path);
  const commands = Array.from({ length: 60 }, () => {
    const offset = below(sizeBytes / 512) * 512;
    const length = Math.min(sizeBytes - offset, (below(600) + 1) * 512);
    return (
      ['write -z', 'write -z -u', 'discard', `write -P ${below(256)}`][below(4)] + ` ${offset} ${length}`
    );
  });
  await qemuIo(path, 'qcow2', commands);
  await qemuImg('convert', '-f', 'qcow2', '-O', 'raw', path, raw);
  return { path, content: await readFile(raw) };
}

void t.test('every byte and every extent is what qemu-img says, over several connections', async (t) => {
  const directory = await workDirectory(t);
  const sizeBytes = 24 * MiB + 37 * 512;
  const { path, content } = await randomImage(directory, sizeBytes);
  const socketPath = await serveImage(t, directory, {
    path,
    format: 'qcow2',
    arguments: ['--shared=8', '-A'],
  });
  await using volume = await openVolume(socketPath);
  t.equal(volume.virtualSizeBytes, sizeBytes);
  t.equal(volume.connections, 3);
  const extents = await volume.extents();
  t.same(extents, await mapOf(path, 'qcow2'));
  t.ok(extents.length > 10 && extents.some(({ zero }) => zero));
  t.ok((await readAll(volume)).equals(content));
  const random = randomFrom(seed + 1);
  const ranges = Array.from({ length: 300 }, () => {
    const offset = Math.floor(random() * sizeBytes);
    return [
      offset,
      Math.floor(random() * Math.min(sizeBytes - offset + 1, random() < 0.1 ? 9 * MiB : 200_000)),
    ] as const;
  });
  const answers = await Promise.all(ranges.map(([offset, length]) => readFrom(volume, offset, length)));
  for (const [index, [offset, length]] of ranges.entries()) {
    const same = answers[index]?.equals(content.subarray(offset, offset + length)) ?? false;
    if (!same) t.fail(`${length} bytes at ${offset}`);
  }
});

void t.test('a raw volume of an odd length is complete to its last byte', async (t) => {
  const directory = await workDirectory(t);
  const path = join(directory, 'odd.raw');
  const content = honestBytes(0, 300_001);
  await writeFile(path, content);
  await using volume = await openVolume(await serveImage(t, directory, { path, format: 'raw' }));
  // QEMU counts in sectors: what the file lacks of the last one reads as zeros.
  t.equal(volume.virtualSizeBytes, Math.ceil(content.length / 512) * 512);
  const whole = await readAll(volume);
  t.ok(whole.subarray(0, content.length).equals(content));
  t.ok(whole.subarray(content.length).every((byte) => byte === 0));
  t.same(await readFrom(volume, 299_990, 11), content.subarray(299_990));
});

void t.test('bitmaps say what was written since they were added, several at once', async (t) => {
  const directory = await workDirectory(t);
  const path = join(directory, 'bitmaps.qcow2');
  const sizeBytes = 8 * MiB + 512;
  await qemuImg('create', '-f', 'qcow2', path, String(sizeBytes));
  await qemuImg('bitmap', '--add', '-g', '64K', path, 'early');
  await qemuIo(path, 'qcow2', ['write -P 1 0 64k', 'write -P 2 1M 130k']);
  await qemuImg('bitmap', '--add', '-g', '64K', path, 'late');
  await qemuIo(path, 'qcow2', ['write -P 3 4M 1', 'write -z 5M 64k', `write -P 4 ${8 * MiB} 512`]);
  const [early, late] = ['qemu:dirty-bitmap:early', 'qemu:dirty-bitmap:late'];
  const lateRuns = [
    { offsetBytes: 0, lengthBytes: 4 * MiB, dirty: false },
    { offsetBytes: 4 * MiB, lengthBytes: 64 * KiB, dirty: true },
    { offsetBytes: 4 * MiB + 64 * KiB, lengthBytes: MiB - 64 * KiB, dirty: false },
    { offsetBytes: 5 * MiB, lengthBytes: 64 * KiB, dirty: true },
    { offsetBytes: 5 * MiB + 64 * KiB, lengthBytes: 3 * MiB - 64 * KiB, dirty: false },
    { offsetBytes: 8 * MiB, lengthBytes: 512, dirty: true },
  ];
  const byDaemon = await serveByDaemon(t, directory, { path, bitmaps: ['early', 'late'] });
  await using volume = await openVolume(byDaemon, [early, late]);
  t.same(await volume.dirtyExtents(late), lateRuns);
  const dirty = (await volume.dirtyExtents(early)).filter((run) => run.dirty);
  t.same(
    dirty.map(({ offsetBytes, lengthBytes }) => [offsetBytes, lengthBytes]),
    [
      [0, 64 * KiB],
      [MiB, 192 * KiB],
      [4 * MiB, 64 * KiB],
      [5 * MiB, 64 * KiB],
      [8 * MiB, 512],
    ],
  );
  t.same(await volume.extents(), await mapOf(path, 'qcow2'));
  await t.rejects(volume.dirtyExtents('base:allocation'), { code: 'NBD_CONTEXT_MISSING' });
  const shared = ['--shared=8', '-B', 'late'];
  const byNbd = await serveImage(t, directory, { path, format: 'qcow2', arguments: shared });
  await using again = await openVolume(byNbd, [late]);
  t.same(await again.dirtyExtents(late), lateRuns);
  await t.rejects(again.dirtyExtents(early), { code: 'NBD_CONTEXT_MISSING' });
  await t.rejects(openVolume(byNbd, [early]), {
    code: 'NBD_CONTEXT_MISSING',
    message: /qemu:dirty-bitmap:early/,
    hint: /base:allocation, qemu:dirty-bitmap:late/,
  });
});

void t.test('more than 100 000 extents are no trouble', async (t) => {
  const directory = await workDirectory(t);
  const clusters = 140_001;
  const content = Buffer.alloc(clusters * 512);
  for (let cluster = 0; cluster < clusters; cluster += 2)
    content.fill((cluster % 255) + 1, cluster * 512, cluster * 512 + 512);
  const raw = join(directory, 'many.raw');
  await writeFile(raw, content);
  const path = join(directory, 'many.qcow2');
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', '-S', '512', '-o', 'cluster_size=512', raw, path);
  await using volume = await openVolume(await serveImage(t, directory, { path, format: 'qcow2' }));
  const extents = await volume.extents();
  t.equal(extents.length, clusters);
  t.ok(
    extents.every(
      ({ offsetBytes, lengthBytes, zero }, index) =>
        offsetBytes === index * 512 && lengthBytes === 512 && zero === (index % 2 === 1),
    ),
  );
  t.ok((await readAll(volume)).equals(content), 'with 70 001 reads at once');
});

void t.test('a volume without bytes has no extents', async (t) => {
  const directory = await workDirectory(t);
  const path = join(directory, 'empty.raw');
  await writeFile(path, '');
  await using volume = await openVolume(await serveImage(t, directory, { path, format: 'raw' }));
  t.equal(volume.virtualSizeBytes, 0);
  t.same(await volume.extents(), []);
  t.equal((await readFrom(volume, 0, 0)).length, 0);
});

void t.test('an export of another name is not found', async (t) => {
  const directory = await workDirectory(t);
  const path = join(directory, 'small.raw');
  await writeFile(path, honestBytes(0, 512));
  const socketPath = await serveImage(t, directory, { path, format: 'raw' });
  const options = { socketPath, answerMs };
  await t.rejects(NbdVolume.open({ ...options, exportName: 'vdb' }), {
    code: 'NBD_EXPORT_NOT_FOUND',
    message: /"vdb"/,
    hint: /qemu-nbd --list -k/,
  });
  await t.rejects(NbdClient.connect({ ...options, exportName: 'vdb' }), { code: 'NBD_EXPORT_NOT_FOUND' });
});

void t.test('a server for one client only is read over one connection', async (t) => {
  const directory = await workDirectory(t);
  const path = join(directory, 'small.raw');
  await writeFile(path, honestBytes(0, MiB));
  const socketPath = await serveImage(t, directory, { path, format: 'raw', arguments: ['--shared=1'] });
  await using volume = await openVolume(socketPath);
  t.equal(volume.connections, 1);
  t.ok((await readFrom(volume, 0, MiB)).equals(honestBytes(0, MiB)));
});

/** 64 KiB: data, a hole that may hold anything, zeros, a hole of zeros. */
const flagsOfQuarters = [0, 1, 2, 3] as const;

void t.test('a hole is zero only where the server says so', async (t) => {
  const quarter = 16 * KiB;
  const server = await FakeServer.start(t, {
    sizeBytes: 64 * KiB,
    onRequest: (request, peer) =>
      void peer.write(
        statusChunk(
          request,
          7,
          flagsOfQuarters.map((flags) => [quarter, flags]),
        ),
      ),
  });
  await using volume = await openVolume(server.socketPath);
  t.same(await volume.extents(), [
    { offsetBytes: 0, lengthBytes: 2 * quarter, zero: false },
    { offsetBytes: 2 * quarter, lengthBytes: 2 * quarter, zero: true },
  ]);
  t.equal(server.connections, 1, 'no further connection where the server does not say that it may be');
});

void t.test('reads go round all connections, which must show one size', async (t) => {
  const honest = { flags: 1 | 2 | 256 };
  const perConnection = new Map<unknown, number>();
  const server = await FakeServer.start(t, {
    ...honest,
    onRequest: (request, peer) => {
      perConnection.set(peer, (perConnection.get(peer) ?? 0) + 1);
      peer.write(
        dataChunk(request, request.offsetBytes, honestBytes(request.offsetBytes, request.lengthBytes)),
      );
    },
  });
  await using volume = await openVolume(server.socketPath);
  await Promise.all(Array.from({ length: 30 }, (_, index) => readFrom(volume, index * 100, 100)));
  t.same([...perConnection.values()], [10, 10, 10]);
  let opened = 0;
  const changing = await FakeServer.start(t, {
    ...honest,
    answerOption: (option) => {
      if (option !== 7) return undefined;
      opened += 1;
      const description = Buffer.concat([u16(0), u64(opened * MiB), u16(honest.flags)]);
      return Buffer.concat([optionReply(7, 3, description), optionReply(7, 1)]);
    },
  });
  await t.rejects(openVolume(changing.socketPath), { code: 'NBD_PROTOCOL', message: /different sizes/ });
  const oneOnly = await FakeServer.start(t, {
    ...honest,
    answerOption: (option) =>
      option === 8 && oneOnly.connections > 1 ? optionReply(8, 0x80000002) : undefined,
  });
  await using single = await openVolume(oneOnly.socketPath);
  t.equal(single.connections, 1, 'a further connection that is refused is done without');
  const silent = await FakeServer.start(t, {
    ...honest,
    answerOption: (option) => (option === 8 && silent.connections > 1 ? Buffer.alloc(0) : undefined),
  });
  const options = { socketPath: silent.socketPath, exportName: 'vda', answerMs: 100 };
  await using patient = await NbdVolume.open(options);
  t.equal(patient.connections, 1, 'nor does one that is not answered hold anybody up');
});
