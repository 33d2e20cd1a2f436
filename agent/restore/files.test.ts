import { link, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { hashFile } from '../../common/copy.ts';
import { filesByPath } from '../../storage/directory/filesByPath.ts';
import { FaultyFiles, openBelow } from '../../test/sim/faultyFiles.ts';
import { markOf, putInPlace, type Replacement, stageFile, type StagedMarks, takeOut } from './files.ts';

/** A staged file with content `new`, and at its place what was there before, if anything. */
async function replacementFor(test: Test, before?: string): Promise<Replacement> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-files-'));
  test.teardown(() => rm(directory, { recursive: true }));
  const [staged, place, kept] = [
    join(directory, 'staged'),
    join(directory, 'place'),
    join(directory, 'kept'),
  ];
  await writeFile(staged, 'new');
  if (before !== undefined) await writeFile(place, before);
  return { staged, place, kept, existed: before !== undefined, safetyCopy: null, presentOwner: null };
}

/** What a restore notes of a staged file before it is put in place. */
async function marksFor({ staged }: Replacement): Promise<StagedMarks> {
  return { [staged]: await markOf(staged) };
}

async function namesBeside({ place }: Replacement): Promise<string[]> {
  return (await readdir(join(place, '..'))).toSorted();
}

void t.test('a file that is put in place keeps what was there, and gives it back', async (t) => {
  const replacement = await replacementFor(t, 'old');
  const marks = await marksFor(replacement);
  for (const _ of ['once', 'again, after a crash']) await putInPlace(replacement, true);
  t.equal(await readFile(replacement.place, 'utf8'), 'new');
  t.equal(await readFile(replacement.kept, 'utf8'), 'old');
  for (const _ of ['once', 'again, after a crash']) await takeOut(replacement, marks);
  t.equal(await readFile(replacement.place, 'utf8'), 'old');
  t.same(await namesBeside(replacement), ['place']);
});

void t.test('an image that libvirt left to root goes back to its owner with its place', async (t) => {
  const replacement = { ...(await replacementFor(t, 'old')), presentOwner: { uid: 4711, gid: 4712 } };
  const marks = await marksFor(replacement);
  await putInPlace(replacement, true);
  await takeOut(replacement, marks);
  t.match(await stat(replacement.place), replacement.presentOwner);
});

void t.test('a file that is new is put in place without overwriting, and taken out whole', async (t) => {
  const replacement = await replacementFor(t);
  const marks = await marksFor(replacement);
  for (const _ of ['once', 'again, after a crash']) await putInPlace(replacement, false);
  t.same(await namesBeside(replacement), ['place']);
  for (const _ of ['once', 'again, after a crash']) await takeOut(replacement, marks);
  t.same(await namesBeside(replacement), []);
});

void t.test(
  'an agent that died between the two names of a file leaves it to be finished or undone',
  async (t) => {
    const finished = await replacementFor(t);
    await link(finished.staged, finished.place);
    await putInPlace(finished, false);
    t.same(await namesBeside(finished), ['place']);
    const undone = await replacementFor(t);
    const marks = await marksFor(undone);
    await link(undone.staged, undone.place);
    await takeOut(undone, marks);
    t.same(await namesBeside(undone), ['staged'], 'which goes with the directory of the job');
  },
);

void t.test('what somebody has put there meanwhile is neither overwritten nor removed', async (t) => {
  const replacement = await replacementFor(t);
  const marks = await marksFor(replacement);
  await writeFile(replacement.place, 'precious');
  await t.rejects(putInPlace(replacement, false), { code: 'PATH_TAKEN', hint: /--to/ });
  await takeOut(replacement, marks);
  t.equal(await readFile(replacement.place, 'utf8'), 'precious');
  // A rollback that had removed its staged files already, and begins once more.
  await rm(replacement.staged);
  await takeOut(replacement, marks);
  t.equal(await readFile(replacement.place, 'utf8'), 'precious');
});

void t.test('a copy that reads back differently is not restored', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-files-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, 'artifact');
  const content = Buffer.alloc(9_000_000, 7).fill(0, 1_000_000, 2_000_000);
  await writeFile(path, content);
  const staged = join(directory, 'work', 'staged');
  const { signal } = new AbortController();
  using files = new FaultyFiles(directory);
  for (const as of ['volume', 'file'] as const) {
    const artifact = { path, ...(await hashFile(path, { digest: as === 'volume' ? 'chunks' : 'whole' })) };
    const copy = (): Promise<void> => stageFile(filesByPath, artifact, staged, { signal, as });
    await files.run(null, [], copy);
    t.ok(content.equals(await readFile(staged)));
    let turned = 0;
    // Pieces are copied beside each other: which call is a write differs from run to run.
    for (let at = 0, calls = files.calls.length; at < calls; at++) {
      const copied = files.run(at, [{ errno: null, when: 'turned' }], copy);
      if (await copied.then(() => files.failed === null).catch(() => false)) continue;
      turned += 1;
      await t.rejects(copied, { code: 'WRITTEN_DIFFERS' });
      t.same(await readdir(join(directory, 'work')), [], 'nothing of it is left');
    }
    t.ok(turned > 0);
  }
});

void t.test('a copy that the system refuses says why and what to do, and leaves nothing', async (t) => {
  const directory = t.testdir({ from: 'x'.repeat(100_000) });
  const from = join(directory, 'from');
  const staged = join(directory, 'work', 'staged');
  const { sha256, sizeBytes } = await hashFile(from);
  const artifact = { path: from, sha256, sizeBytes };
  using files = new FaultyFiles(directory);
  const copy = async (): Promise<void> =>
    stageFile(filesByPath, artifact, staged, { signal: new AbortController().signal });
  for (const [errno, code] of [
    ['ENOSPC', 'NOT_ENOUGH_DISK_SPACE'],
    ['EIO', 'COPY_FAILED'],
  ] as const) {
    await files.run(null, [], copy);
    const { length } = files.calls;
    await rm(staged);
    for (let at = 0; at < length; at++) {
      const error: unknown = await files.run(at, [{ errno, when: 'before' }], copy).then(
        () => null,
        (caught: unknown) => caught,
      );
      const { failed } = files;
      const where = `${failed?.operation} of ${failed?.path.slice(directory.length)} with ${errno}`;
      if (failed !== null) t.match(error, { code, hint: /./ }, where);
      t.same(await openBelow(directory), [], where);
      await rm(staged, { force: true });
    }
  }
});
