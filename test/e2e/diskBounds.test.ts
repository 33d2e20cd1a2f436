import { readdir } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { eventually, type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import {
  type Answer,
  answerOf,
  requireError,
  requireFinished,
  requireNothingLost,
  TestAgent,
  witness,
} from './support.ts';

const mib = 1024 * 1024;
/** So slow that a file system fills up while it is read. */
const slowRead = { policies: { default: { read: { bandwidthBytesPerSecond: 2 * mib } } } };

/** Leaves only so much free on a file system. */
async function fill(lab: Lab, directory: string, leftMiB: number, name = 'filling'): Promise<string> {
  const { stdout } = await lab.run('stat', ['-f', '-c', '%a %S', directory]);
  const [blocks = 0, blockBytes = 0] = stdout.trim().split(' ').map(Number);
  const filling = path.join(directory, name);
  await lab.run('fallocate', ['-l', String(blocks * blockBytes - leftMiB * mib), filling]);
  return filling;
}

/** Backs up, and does something as soon as QEMU serves. */
async function backUpDuring(
  lab: Lab,
  agent: TestAgent,
  machine: LabMachine,
  during: () => Promise<unknown>,
): Promise<Answer> {
  const run = agent.start({ kind: 'backup', machine: machine.uuid, mode: 'disk' });
  const serves = async (): Promise<boolean> =>
    (await lab.run('sh', ['-c', 'ls /run/stillpoint/*/nbd'], { check: false })).exitCode === 0;
  await eventually(serves, { timeoutMs: 60_000 });
  await during();
  return answerOf(run);
}

/** The guest never stood still: libvirt would tell of the error until its next start. */
async function requireNeverStopped(t: Test, lab: Lab, machine: LabMachine): Promise<void> {
  t.match(await machine.state(), /^running/);
  t.match(await lab.virsh('domblkerror', machine.uuid), /No errors found/);
}

void t.test('a file system that fills up during a backup of mode "disk" never stops the guest', async (t) => {
  await using lab = await startLab();
  const images = await lab.loopFilesystem('ext4', 256);
  const storage = await lab.smallTmpfs(200);
  const agent = await TestAgent.install(lab, {
    rest: slowRead,
    storages: { local: { kind: 'directory', path: storage } },
  });
  const machine = await lab.createMachine({
    name: 'sp-bounds',
    volumes: [{ target: 'vda', path: `${images}/vda.qcow2`, prefillMiB: 30 }],
  });
  const stored = async (): Promise<readonly string[]> =>
    readdir(lab.outside(path.join(storage, machine.name))).catch(() => []);

  await t.test('the storage: the backup fails, and the next one is made', async (t) => {
    const whole = await witness(lab, machine);
    let filling = '';
    const answer = await backUpDuring(lab, agent, machine, async () => {
      filling = await fill(lab, storage, 4);
    });
    requireError(t, answer, 'STORAGE_FULL');
    await requireNeverStopped(t, lab, machine);
    await requireNothingLost(t, lab, agent, whole);
    t.same(await stored(), [], 'nothing partial is left');
    await lab.run('rm', [filling]);
  });

  await t.test('beside the images: the backup is given up before the guest finds no room', async (t) => {
    const filling = await fill(lab, images, 80);
    const whole = await witness(lab, machine);
    // Somebody else takes what was free when the backup began.
    const answer = await backUpDuring(lab, agent, machine, async () => {
      await fill(lab, images, 14, 'filling-more');
    });
    requireError(t, answer, 'SCRATCH_FULL');
    await requireNeverStopped(t, lab, machine);
    await requireNothingLost(t, lab, agent, whole);
    t.same(await stored(), [], 'nothing partial is left');
    await lab.run('rm', [filling, `${filling}-more`]);
  });

  await t.test(
    'beside the images, at once: the guest runs on in the room that the backup gives back',
    async (t) => {
      const filling = await fill(lab, images, 80);
      const whole = await witness(lab, machine);
      const answer = await backUpDuring(lab, agent, machine, async () => {
        await fill(lab, images, 0, 'filling-more');
        await eventually(async () => (await machine.state()).startsWith('paused'), { intervalMs: 5 });
      });
      requireError(t, answer, 'SCRATCH_FULL');
      t.match(await machine.state(), /^running/);
      await requireNothingLost(t, lab, agent, whole);
      t.match(await machine.state(), /^running/);
      t.same(await stored(), [], 'nothing partial is left');
      await lab.run('rm', [filling, `${filling}-more`]);
    },
  );

  await t.test('with room again it is backed up', async (t) => {
    await agent.setup.configure({ storages: { local: { kind: 'directory', path: storage } } });
    requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
    t.equal((await stored()).length, 1);
  });
});
