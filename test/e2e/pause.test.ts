import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { type BackgroundRun, eventually, type Lab, startLab } from '../lab/lab.ts';
import {
  answerOf,
  requireError,
  requireFinished,
  requireNothingLost,
  TestAgent,
  witness,
} from './support.ts';

const mib = 1024 * 1024;
/** So slow that a pause comes in the middle of it, also on a busy host. */
const slowRead = { policies: { default: { read: { bandwidthBytesPerSecond: mib } } } };
const pausedSchema = z.object({ id: z.string(), pause: z.object({ since: z.string() }) });

/** Pauses the only job that runs, as soon as QEMU serves, as an operator would. @returns its id */
async function pause(lab: Lab, agent: TestAgent): Promise<string> {
  const serves = async (): Promise<boolean> =>
    (await lab.run('sh', ['-c', 'ls /run/stillpoint/*/nbd'], { check: false })).exitCode === 0;
  await eventually(serves, { timeoutMs: 60_000 });
  const [job] = (await agent.jobs()).filter(({ holdsMachine }) => holdsMachine);
  const said = await agent.setup.run(['job', 'pause', job?.id ?? '', '--max', '10m', '--json']);
  return pausedSchema.parse(said.json()).id;
}

/** What takes room in a directory. */
async function blocksIn(directory: string): Promise<number> {
  let blocks = 0;
  for (const name of await readdir(directory, { recursive: true }))
    blocks += (await stat(path.join(directory, name))).blocks;
  return blocks;
}

void t.test(
  'a backup of mode "disk" is paused and resumed by commands, while its guest writes on',
  async (t) => {
    await using lab = await startLab();
    const images = await lab.loopFilesystem('ext4', 256);
    const storage = await lab.smallTmpfs(200);
    const agent = await TestAgent.install(lab, {
      rest: slowRead,
      storages: { local: { kind: 'directory', path: storage } },
    });
    const machine = await lab.createMachine({
      name: 'sp-pause',
      volumes: [{ target: 'vda', path: `${images}/vda.qcow2`, prefillMiB: 40 }],
    });
    const begin = (): BackgroundRun => agent.start({ kind: 'backup', machine: machine.uuid, mode: 'disk' });

    await t.test('nothing is stored while it is paused, and it is whole afterwards', async (t: Test) => {
      const whole = await witness(lab, machine);
      const run = begin();
      const id = await pause(lab, agent);
      const { stdout: told } = await agent.setup.run(['jobs']);
      t.match(told, /retaining \(paused\)/);
      t.match(told, /paused since 20/);
      await sleep(1000);
      const before = await blocksIn(lab.outside(storage));
      await sleep(3000);
      t.equal(await blocksIn(lab.outside(storage)), before);
      t.match(await machine.state(), /^running/);
      t.equal((await agent.setup.run(['job', 'resume', id])).exitCode, 0);
      requireFinished(t, await answerOf(run));
      await requireNothingLost(t, lab, agent, whole);
      t.equal((await agent.setup.run(['verify', `${machine.name}@latest`, '--data'])).exitCode, 0);
    });

    await t.test('it is given up before the guest finds no room for what it overwrites', async (t: Test) => {
      const whole = await witness(lab, machine);
      const run = begin();
      await pause(lab, agent);
      // Only now: what the guest has overwritten until then takes its part.
      const { stdout } = await lab.run('stat', ['-f', '-c', '%a %S', images]);
      const [blocks = 0, blockBytes = 0] = stdout.trim().split(' ').map(Number);
      await lab.run('fallocate', ['-l', String(blocks * blockBytes - 14 * mib), `${images}/filling`]);
      requireError(t, await answerOf(run), 'SCRATCH_FULL');
      t.match(await machine.state(), /^running/);
      t.match(await lab.virsh('domblkerror', machine.uuid), /No errors found/);
      await requireNothingLost(t, lab, agent, whole);
    });
  },
);
