import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import * as z from 'zod';
import type { NbdError } from '../../nbd/errors.ts';
import { qemuImg, qemuIo, randomFrom, serveImage, workDirectory } from '../../nbd/fixture.ts';
import { ReadCache } from '../../nbd/readCache.ts';
import { contentOf, ScriptedSource } from '../../nbd/scriptedSource.ts';
import { NbdServer } from '../../nbd/server.ts';
import { NbdVolume } from '../../nbd/volume.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const timeout = 120_000;
const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);
const random = randomFrom(seed);

const directory = await workDirectory(t);
const { content, extents } = contentOf(random, [
  { lengthBytes: 5 * MiB, zero: false },
  { lengthBytes: 3 * MiB, zero: true },
  { lengthBytes: MiB, zero: false },
  { lengthBytes: 20 * MiB, zero: true },
  { lengthBytes: 64 * KiB, zero: false },
  { lengthBytes: 64 * KiB, zero: true },
  { lengthBytes: 2 * MiB + 512, zero: false },
]);
const reference = join(directory, 'reference.raw');
await writeFile(reference, content);
const errors: NbdError[] = [];
const sources = { vda: new ScriptedSource(content, extents), 'vd b': new ScriptedSource(content) };
const socketPath = join(directory, 'served');
// A cache that is smaller than the volume: tools must not live from what was read before.
const server = await NbdServer.listen({
  socketPath,
  exports: new Map(Object.entries(sources)),
  cache: new ReadCache({ maxBytes: 4 * MiB }),
  onError: (error) => void errors.push(error),
});
t.teardown(() => server[Symbol.asyncDispose]());
const uri = `nbd+unix:///vda?socket=${socketPath}`;

const joinedSchema = z.array(
  z.object({ start: z.number(), length: z.number(), zero: z.boolean(), data: z.boolean() }),
);

void t.test('qemu-img finds size, holes and bytes', async (t) => {
  const info = z
    .object({ 'virtual-size': z.number() })
    .parse(JSON.parse(await qemuImg('info', '--output=json', uri)));
  t.equal(info['virtual-size'], content.length);
  const map = joinedSchema.parse(JSON.parse(await qemuImg('map', '--output=json', uri)));
  t.same(
    map.map(({ start, length, zero, data }) => ({ start, length, zero, data })),
    extents.map(({ offsetBytes, lengthBytes, zero }) => ({
      start: offsetBytes,
      length: lengthBytes,
      zero,
      data: !zero,
    })),
  );
  t.match(await qemuImg('compare', '-f', 'raw', '-F', 'raw', uri, reference), /identical/);
  t.match(await qemuImg('compare', `nbd+unix:///vd%20b?socket=${socketPath}`, uri), /identical/);
  for (const parallel of [
    ['-m', '1'],
    ['-m', '16', '-W'],
  ]) {
    const copy = join(directory, `copy-${parallel.length}.qcow2`);
    await qemuImg('convert', ...parallel, '-O', 'qcow2', uri, copy);
    t.match(await qemuImg('compare', '-f', 'qcow2', '-F', 'raw', copy, reference), /identical/);
    t.ok((await stat(copy)).size < content.length - 20 * MiB, 'holes stay holes');
  }
  t.same(errors, []);
});

void t.test('an overlay stands on it, is written to, and pulls it in', async (t) => {
  const overlay = join(directory, 'overlay.qcow2');
  await qemuImg('create', '-f', 'qcow2', '-b', uri, '-F', 'raw', overlay);
  const changes = [
    [MiB + 5 * KiB, 3 * KiB],
    [7 * MiB, 200 * KiB],
    [20 * MiB, 64 * KiB],
  ] as const;
  const expected = Buffer.from(content);
  for (const [offset, length] of changes) expected.fill(0x5a, offset, offset + length);
  await qemuIo(
    overlay,
    'qcow2',
    changes.map(([offset, length]) => `write -P 0x5a ${offset} ${length}`),
  );
  const changed = join(directory, 'changed.raw');
  await writeFile(changed, expected);
  t.match(await qemuImg('compare', '-f', 'qcow2', '-F', 'raw', overlay, changed), /identical/);
  await blockStream(overlay);
  const info = z.object({ 'backing-filename': z.string().optional() });
  t.equal(
    info.parse(JSON.parse(await qemuImg('info', '--output=json', overlay)))['backing-filename'],
    undefined,
  );
  t.match(await qemuImg('compare', '-f', 'qcow2', '-F', 'raw', overlay, changed), /identical/);
  t.same(errors, []);
});

/** Pulls the backing file into an image, by the job that an instant restore uses. */
async function blockStream(image: string): Promise<void> {
  const child = execa(
    'qemu-storage-daemon',
    [
      ['--chardev', 'stdio,id=c', '--monitor', 'chardev=c'],
      ['--blockdev', `driver=qcow2,node-name=top,file.driver=file,file.filename=${image}`],
    ].flat(),
    { timeout, buffer: false },
  );
  const say = (command: unknown): void => void child.stdin.write(JSON.stringify(command));
  say({ execute: 'qmp_capabilities' });
  say({ execute: 'block-stream', arguments: { 'job-id': 'pull', device: 'top' } });
  const eventSchema = z.object({
    event: z.string(),
    data: z.object({ error: z.string().optional() }).optional(),
  });
  for await (const line of child.iterable()) {
    const event = eventSchema.safeParse(JSON.parse(line));
    if (event.data?.event !== 'BLOCK_JOB_COMPLETED') continue;
    if (event.data.data?.error !== undefined) throw new Error(event.data.data.error);
    say({ execute: 'quit' });
  }
  await child;
}

void t.test('a part that cannot be read is an error there, and nowhere else', async (t) => {
  const source = new ScriptedSource(content, extents);
  source.onRead = (at) => {
    if (at === 8 * MiB) throw new Error('gone');
  };
  const failures: NbdError[] = [];
  const path = join(directory, 'failing');
  await using _ = await NbdServer.listen({
    socketPath: path,
    exports: new Map([['vda', source]]),
    onError: (error) => void failures.push(error),
  });
  const io = (command: string): Promise<{ readonly all: string }> =>
    execa('qemu-io', ['-r', '-f', 'raw', '-c', command, `nbd+unix:///vda?socket=${path}`], {
      reject: false,
      all: true,
      timeout,
    });
  t.match((await io('read 8M 4k')).all, /read failed: Input\/output error/);
  t.match((await io('read 8704k 64k')).all, /65536\/65536 bytes/);
  t.match(failures, [{ code: 'NBD_SOURCE_FAILED', message: /at 8388608 .*gone/ }]);
});

void t.test('what qemu-nbd serves is served on', async (t) => {
  const from = await serveImage(t, directory, { path: reference, format: 'raw' });
  await using volume = await NbdVolume.open({ socketPath: from, exportName: 'vda', answerMs: 20_000 });
  const path = join(directory, 'onward');
  await using _ = await NbdServer.listen({
    socketPath: path,
    exports: new Map([['x', volume]]),
    onError: (error) => void errors.push(error),
  });
  t.match(await qemuImg('compare', `nbd+unix:///x?socket=${path}`, reference), /identical/);
  t.same(errors, []);
});

void t.test('nbdinfo and nbdcopy agree', async (t) => {
  const listed = (
    await execa('nbdinfo', ['--list', '--json', `nbd+unix://?socket=${socketPath}`], { timeout })
  ).stdout;
  const schema = z.object({
    exports: z.array(
      z.object({
        'export-name': z.string(),
        'export-size': z.number(),
        is_read_only: z.boolean(),
        can_multi_conn: z.boolean(),
      }),
    ),
  });
  t.same(
    schema
      .parse(JSON.parse(listed))
      .exports.map((found) => [
        found['export-name'],
        found['export-size'],
        found.is_read_only,
        found.can_multi_conn,
      ]),
    [
      ['vda', content.length, true, true],
      ['vd b', content.length, true, true],
    ],
  );
  for (const [index, how] of [
    [],
    ['--synchronous'],
    ['--connections=8', '--requests=64'],
    ['--request-size=33554432'],
  ].entries()) {
    const copy = join(directory, `nbdcopy-${index}.raw`);
    await execa('nbdcopy', [...how, uri, copy], { timeout });
    t.ok((await readFile(copy)).equals(content), `nbdcopy ${how.join(' ')}`);
  }
  t.same(errors, []);
});
