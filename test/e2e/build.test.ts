import { access, mkdir, readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { type Lab, startLab } from '../lab/lab.ts';

const repository = join(import.meta.dirname, '../..');

function build(lab: Lab, target: string): ReturnType<Lab['run']> {
  const command = ['node', join(repository, 'scripts/build.ts'), target];
  return lab.run(join(repository, 'scripts/with-node'), command, { check: false, timeoutMs: 120_000 });
}

void t.test('what is built backs up a machine at any place, without this checkout', async (t) => {
  await using lab = await startLab();
  const built = await build(lab, join(lab.root, 'built'));
  t.equal(built.exitCode, 0, built.stderr);
  const place = join(lab.root, 'opt');
  await rename(join(lab.root, 'built'), place);
  await lab.run('ln', ['-s', join(place, 'bin/stillpoint'), join(lab.root, 'stillpoint')]);
  const agent = await lab.installAgent({ command: join(lab.root, 'stillpoint') });

  const machine = await lab.createMachine({ name: 'sp-built' });
  await machine.waitUntilWriting();
  for (const mode of ['disk', 'live']) {
    const backup = await agent.run(['backup', machine.name, '--mode', mode]);
    t.equal(backup.exitCode, 0, backup.stderr);
  }
  const verified = await agent.run(['verify', '--all', '--data']);
  t.equal(verified.exitCode, 0, `${verified.stdout}${verified.stderr}`);
  t.equal((verified.stdout.match(/every byte is as stored/g) ?? []).length, 2, verified.stdout);

  await t.resolves(
    access(join(place, 'lib/chunkWorker.js')),
    'the thread of repositories is where it is looked for',
  );

  const licences = await readdir(join(place, 'licences'));
  for (const name of ['node', 'koffi', 'zod', 'yaml', 'pino'])
    t.ok(licences.includes(`${name}.txt`), `the licence of ${name} is passed on with it`);
});

void t.test('a build replaces an earlier build, and nothing else', async (t) => {
  await using lab = await startLab();
  const target = join(lab.root, 'precious');
  await mkdir(target);
  await writeFile(join(target, 'thesis.txt'), 'years');
  const refused = await build(lab, target);
  t.equal(refused.exitCode, 1);
  t.match(refused.stderr, /^BUILD_FAILED: .*precious is not empty/);
  t.same(await readdir(target), ['thesis.txt']);
  const first = await build(lab, join(lab.root, 'built'));
  const second = await build(lab, join(lab.root, 'built'));
  t.same([first.exitCode, second.exitCode], [0, 0], second.stderr);
});
