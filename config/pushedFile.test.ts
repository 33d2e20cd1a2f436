import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { FaultyFiles } from '../test/sim/faultyFiles.ts';
import { type KeptPolicies, PushedFile } from './pushedFile.ts';

const kept: KeptPolicies = {
  revision: 3,
  document: '{"policies":{}}',
  setBy: 'controller:c1',
  setAt: '2026-11-22T10:00:00.000Z',
};

void t.test('what was written is read again, and only its owner can read it', async (t) => {
  const directory = t.testdir({});
  const file = new PushedFile(directory);
  t.same(await file.read(), { kept: null, problem: null }, 'nothing is there at first');
  await file.write(kept);
  t.same(await new PushedFile(directory).read(), { kept, problem: null });
  t.equal((await stat(file.path)).mode & 0o777, 0o600);
  t.equal((await stat(file.directory)).mode & 0o777, 0o700);
  await chmod(file.directory, 0o755);
  await file.write({ ...kept, revision: 4, document: null });
  t.match(await file.read(), { kept: { revision: 4, document: null } });
  t.equal((await stat(file.directory)).mode & 0o777, 0o700, 'it is closed again');
  await file.remove();
  await file.remove();
  t.same(await file.read(), { kept: null, problem: null });
});

void t.test('whatever has become of it, it is told and nothing throws', async (t) => {
  const file = new PushedFile(t.testdir({}));
  await file.write(kept);
  const good = await readFile(file.path, 'utf8');
  const cases: readonly (readonly [string, RegExp])[] = [
    ['', /damaged/],
    [good.slice(0, -20), /damaged/],
    [good.replace('"revision":3', '"revision":2'), /damaged/],
    [good.replace('controller:c1', 'controller:c2'), /damaged/],
    [good.replace('{\\"policies', '{\\"machines'), /damaged/],
    ['{"formatVersion":1,"sha256":"","content":null}', /damaged/],
    ['null', /damaged/],
    [good.replace('"formatVersion":1', '"formatVersion":2'), /of version 2, and this program reads 1/],
  ];
  for (const [text, expected] of cases) {
    t.not(text, good);
    await writeFile(file.path, text);
    const read = await file.read();
    t.equal(read.kept, null);
    t.match(read.problem, expected);
    t.match(read.problem, file.path);
  }
  const other = new PushedFile(t.testdir({ a: {} }));
  await mkdir(other.path, { recursive: true });
  t.match((await other.read()).problem, /EISDIR/);
  const looped = new PushedFile(t.testdir({ b: {} }));
  await mkdir(looped.directory);
  await symlink(looped.path, looped.path);
  t.match((await looped.read()).problem, /ELOOP/);
});

for (const moment of ['sync', 'rename'])
  void t.test(`a process that is killed before its ${moment} leaves what was kept before`, async (t) => {
    const directory = t.testdir({});
    const file = new PushedFile(directory);
    await file.write(kept);
    const killed = await execa(
      process.execPath,
      ['--input-type=module', '-e', dyingWriter(directory, moment)],
      {
        reject: false,
      },
    );
    t.equal(killed.signal, 'SIGKILL');
    t.same(await file.read(), { kept, problem: null });
    t.equal((await readdir(file.directory)).length, 2, 'and a file that was begun');
    await file.sweep();
    t.same(await readdir(file.directory), ['pushed.json']);
    t.same(await file.read(), { kept, problem: null });
  });

/** A program that writes revision 4, and is killed when it is about to do something. */
function dyingWriter(directory: string, moment: string): string {
  return `
    import { createRequire, syncBuiltinESMExports } from 'node:module';
    const files = createRequire('/')('node:fs/promises');
    const die = () => { process.kill(process.pid, 'SIGKILL'); return new Promise(() => {}); };
    if (${JSON.stringify(moment)} === 'rename') files.rename = die;
    else {
      const { open } = files;
      files.open = async (...given) => {
        const file = await open(...given);
        return given[1] === 'wx' ? Object.assign(file, { sync: die }) : file;
      };
    }
    syncBuiltinESMExports();
    const { PushedFile } = await import(${JSON.stringify(join(import.meta.dirname, 'pushedFile.ts'))});
    await new PushedFile(${JSON.stringify(directory)}).write(${JSON.stringify({ ...kept, revision: 4 })});
  `;
}

void t.test('what cannot be written leaves what was kept before', async (t) => {
  const file = new PushedFile(t.testdir({}));
  await file.write(kept);
  await t.rejects(file.write({ ...kept, revision: 0 }), 'it is not valid');
  const nowhere = new PushedFile('/dev/null/state');
  await t.rejects(nowhere.write(kept), { code: 'ENOTDIR' });
  t.same(await nowhere.read(), { kept: null, problem: null });
  t.same(await file.read(), { kept, problem: null });
});

void t.test('whichever call of a write fails, the old policies are there or the new ones', async (t) => {
  const root = t.testdir({});
  using faulty = new FaultyFiles(root);
  const next = { ...kept, revision: 4 };
  const prepared = async (name: string): Promise<PushedFile> => {
    const file = new PushedFile(join(root, name));
    await mkdir(join(root, name));
    await file.write(kept);
    return file;
  };
  const whole = await prepared('all');
  await faulty.run(null, [], () => whole.write(next));
  const calls = faulty.calls.length;
  const seen = new Set<number>();
  for (const errno of ['ENOSPC', 'EIO'])
    for (const when of ['before', 'after'] as const)
      for (let at = 0; at < calls; at += 1) {
        const name = `${errno}-${when}-${at}`;
        const file = await prepared(name);
        const fault = errno === 'EIO' ? { errno, when, afterwards: errno } : { errno, when };
        await faulty.run(at, [fault], () => file.write(next)).catch(() => undefined);
        const { kept: found, problem } = await file.read();
        t.equal(problem, null, name);
        t.ok(found?.revision === 3 || found?.revision === 4, name);
        seen.add(found?.revision ?? 0);
        await file.write({ ...kept, revision: 5 });
        t.match(await file.read(), { kept: { revision: 5 } }, 'and it can be written again');
      }
  t.same(seen, new Set([3, 4]), 'both were seen');
});
