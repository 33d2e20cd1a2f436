import { chmod, mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { execa } from 'execa';
import t, { type Test } from 'tap';

import { NbdVolume } from '../../nbd/volume.ts';
import { createImage, writeGuestBlock } from '../../test/sim/images.ts';
import { answers, endServer, ensureServed, type ServedArtifact } from './served.ts';

const root = { uid: 0, gid: 0 };
const options = { answerMs: 10_000, signal: new AbortController().signal };

async function artifactFor(test: Test, name = 'stored, with a comma.qcow2'): Promise<ServedArtifact> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-served-'));
  const artifact = join(directory, name);
  const socket = join(directory, 'run', 'job', 'vda');
  await createImage(artifact, { format: 'qcow2', sizeBytes: 2 ** 20 });
  await writeGuestBlock(artifact, 'qcow2', 1);
  await chmod(artifact, 0o400);
  test.teardown(async () => {
    await endServer(socket);
    await rm(directory, { recursive: true });
  });
  return { target: 'vda', artifact, format: 'qcow2', socket, repository: null };
}

void t.test('an artifact is served read-only, once, to QEMU’s user alone', async (t) => {
  const served = await artifactFor(t);
  const before = await stat(served.artifact);
  t.equal(await ensureServed(served, { uid: 4711, gid: 4712 }), true);
  t.equal(await ensureServed(served, root), false, 'it is served already');
  const { mode, uid, gid } = await stat(served.socket);
  t.same({ mode: mode & 0o777, uid, gid }, { mode: 0o600, uid: 4711, gid: 4712 });
  await using volume = await NbdVolume.open({ socketPath: served.socket, exportName: 'vda', ...options });
  const block = Buffer.alloc(4096);
  await volume.readInto(block, 4096);
  t.match(block.toString('latin1'), /^SEQ 000000000001/);
  t.match(
    await execa('qemu-io', ['-f', 'raw', '-c', 'write 0 4096', `nbd+unix:///vda?socket=${served.socket}`], {
      reject: false,
    }),
    { failed: true },
  );
  const { mtimeMs, ctimeMs } = await stat(served.artifact);
  t.same({ mtimeMs, ctimeMs }, { mtimeMs: before.mtimeMs, ctimeMs: before.ctimeMs });
});

void t.test(
  'a server that was killed is followed by a new one; one that is ended leaves nothing',
  async (t) => {
    const served = await artifactFor(t);
    await ensureServed(served, root);
    const { stdout } = await execa('pgrep', ['-f', served.socket]);
    process.kill(Number(stdout), 'SIGKILL');
    while (await answers(served.socket)) await new Promise((resolve) => setImmediate(resolve));
    t.equal(await ensureServed(served, root), true);
    t.equal(await answers(served.socket), true);
    await endServer(served.socket);
    t.equal(await answers(served.socket), false);
    await t.rejects(stat(served.socket), { code: 'ENOENT' });
    await endServer(served.socket);
  },
);

void t.test('what cannot be served is told with what qemu-nbd says', async (t) => {
  const served = await artifactFor(t);
  await rm(served.artifact);
  await t.rejects(ensureServed(served, root), {
    code: 'CANNOT_SERVE',
    message: /No such file/,
    hint: /qemu-img info/,
  });
});
