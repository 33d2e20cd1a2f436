import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import { type Lab, startLab } from '../lab/lab.ts';
import {
  artifact,
  digestOf,
  requireError,
  requireFinished,
  requireNothingLost,
  type StoredBackup,
  TestAgent,
  witness,
} from './support.ts';

const targets = ['vda', 'vdb'] as const;

/** Everything that a machine that stands on a backup could change of it. */
async function traitsOf(lab: Lab, backup: StoredBackup): Promise<readonly unknown[]> {
  return Promise.all(
    (await readdir(backup.directory)).map(async (name) => {
      const file = path.join(backup.directory, name);
      const { ino, uid, gid, mode, mtimeMs, ctimeMs } = await stat(file);
      const attributes = (await lab.run('getfattr', ['-d', '-m-', file], { check: false })).stdout;
      return { name, ino, uid, gid, mode, mtimeMs, ctimeMs, attributes, digest: await digestOf(lab, file) };
    }),
  );
}

void t.test('a machine starts on its backup, and has it all in the end', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({
    name: 'sp-instant',
    nic: true,
    volumes: targets.map((target) => ({ target, sizeMiB: 256, prefillMiB: 64 })),
  });
  const first = await machine.waitUntilWriting({ rounds: 50 });
  await lab.virsh('autostart', machine.uuid);
  requireFinished(t, await agent.backup(machine));
  const backup = await agent.latest(machine.name);
  const end = (await lab.readDisk(artifact(backup, 'vda'))).highestSequence;
  await machine.waitUntilWriting({ after: end, rounds: 100 });
  const definition = await machine.xml('inactive');
  const before = await traitsOf(lab, backup);

  await t.test('in place, resumed', async (t) => {
    requireFinished(t, await agent.restore(backup.manifest.id, { inPlace: true, instant: true }));
    t.equal((await machine.waitUntilWriting({ after: end })).runId, first.runId, 'with its memory');
    t.equal(await machine.xml('inactive'), definition, 'its definition is as it was');
    await requireNothingLost(t, lab, agent, await witness(lab, machine));
    t.same(await traitsOf(lab, backup), before, 'the backup was not touched, nor what belongs to its files');
    for (const target of targets)
      t.notMatch(
        (await lab.run('qemu-img', ['info', '-U', machine.imagePath(target)])).stdout,
        'backing file',
      );
  });

  await t.test('in place, booted, while the agent dies in the middle', async (t) => {
    const request = {
      kind: 'restore',
      backup: backup.manifest.id,
      inPlace: true,
      instant: true,
      start: 'boot',
    } as const;
    await agent.ask(request, { crashAt: 'restore/before:pull' });
    const since = await machine.waitUntilWriting({ rounds: 20 });
    t.match(await machine.xml('live'), "protocol='nbd'", 'it stands on the backup');
    requireError(t, await agent.backup(machine), 'UNFINISHED_JOB');
    await agent.ask({ kind: 'recover' });
    const now = await machine.waitUntilWriting({ after: since.sequence });
    t.equal(now.runId, since.runId, 'it was not started again');
    await requireNothingLost(t, lab, agent, await witness(lab, machine));
    t.same(await traitsOf(lab, backup), before);
  });

  await t.test('in place, and its server dies: a pause, and nothing lost', async (t) => {
    const request = { kind: 'restore', backup: backup.manifest.id, inPlace: true, instant: true } as const;
    await agent.ask(request, { crashAt: 'restore/before:pull' });
    const since = await machine.waitUntilWriting({ rounds: 20 });
    const servers = (await lab.run('pgrep', ['-f', `qemu-nbd.*${backup.directory}/`])).stdout
      .trim()
      .split('\n');
    t.equal(servers.length, targets.length);
    await lab.run('kill', ['-9', ...servers]);
    await agent.ask({ kind: 'recover' });
    const now = await machine.waitUntilWriting({ after: since.sequence });
    t.equal(now.runId, since.runId, 'it kept its memory');
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0, readErrors: 0 });
    await requireNothingLost(t, lab, agent, await witness(lab, machine));
  });

  await t.test('in place, and QEMU dies in the middle: its images are completed', async (t) => {
    const request = { kind: 'restore', backup: backup.manifest.id, inPlace: true, instant: true } as const;
    await agent.ask(request, { crashAt: 'restore/after:pull' });
    const since = await machine.waitUntilWriting({ rounds: 5 });
    await lab.killQemu(machine.name);
    await agent.ask({ kind: 'recover' });
    t.match(await machine.state(), /^shut off/);
    t.ok(
      (await machine.readDisk('vda')).highestSequence >= since.sequence - 1,
      'with what was written since',
    );
    t.same((await machine.readDisk('vda')).missing, []);
    await machine.start();
    await machine.waitUntilWriting({ rounds: 5 });
    await requireNothingLost(t, lab, agent, await witness(lab, machine));
    t.same(await traitsOf(lab, backup), before);
  });

  await t.test('as a second machine, beside the first', async (t) => {
    const whole = await witness(lab, machine);
    requireFinished(t, await agent.restore(backup.manifest.id, { as: 'sp-instant-two', instant: true }));
    const second = await lab.findMachine('sp-instant-two');
    t.equal((await second.waitUntilWriting({ after: end })).runId, first.runId);
    await requireNothingLost(t, lab, agent, await witness(lab, second));
    await requireNothingLost(t, lab, agent, whole);
  });
});
