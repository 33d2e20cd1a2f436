import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import * as z from 'zod';
import { eventually, startLab } from '../lab/lab.ts';
import { labProcesses, processFile } from '../lab/sweep.ts';

const labFile = path.resolve(import.meta.dirname, '../lab/lab.ts');

/** Everything of a laboratory that can be seen from outside: processes, its directory, mounts, loop devices. */
async function remainders(root: string): Promise<readonly string[]> {
  const found = (await labProcesses(root)).map((pid) => `process ${pid}`);
  const name = path.basename(root);
  for (const entry of await readdir(path.dirname(root))) if (entry === name) found.push(root);
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const commandLine = await processFile(Number(pid), 'cmdline');
    if (commandLine.includes(name)) found.push(`${pid} ${commandLine.replaceAll('\0', ' ')}`);
  }
  if ((await processFile(process.pid, 'mountinfo')).includes(name))
    found.push('a mount outside of the namespace');
  const loops = await execa('losetup', ['-a'], { timeout: 10_000 });
  if (loops.stdout.includes(name)) found.push('a loop device');
  return found;
}

void t.test('a guest in the laboratory', async (t) => {
  await using lab = await startLab();
  const begin = performance.now();
  const machine = await lab.createMachine({
    name: 'sp-lab',
    volumes: [{ target: 'vda' }, { target: 'vdb', format: 'raw' }],
  });
  await machine.waitUntilWriting();
  t.comment(`from definition to writing: ${Math.round(performance.now() - begin)} ms`);

  await t.test('has the same sequence number in memory and, read from outside, on every disk', async (t) => {
    await machine.waitUntilWriting({ rounds: 50 });
    const memory = await machine.pauseWriter();
    for (const { target, sequence } of memory.disks) {
      const disk = await machine.readDisk(target);
      t.equal(sequence, memory.sequence);
      t.match(disk, {
        runId: memory.runId,
        firstSequence: 1,
        highestSequence: memory.sequence,
        count: memory.sequence,
      });
      t.same([disk.missing, disk.torn], [[], 0]);
    }
    t.match(await machine.verifyFromInside(), {
      checked: memory.sequence * 2,
      missing: 0,
      torn: 0,
      newer: 0,
    });
    await machine.continueWriter();
  });

  await t.test('goes on with the same run and the next number after virsh save and restore', async (t) => {
    const file = path.join(lab.root, 'tmp/state');
    const before = await machine.writerStatus();
    const start = performance.now();
    await lab.virsh('save', machine.name, file);
    t.comment(`virsh save under the subreaper: ${Math.round(performance.now() - start)} ms`);
    const disks = await Promise.all([machine.readDisk('vda'), machine.readDisk('vdb')]);
    const restored = performance.now();
    await lab.virsh('restore', '--paused', file);
    t.comment(`virsh restore: ${Math.round(performance.now() - restored)} ms`);
    t.same(await Promise.all([machine.readDisk('vda'), machine.readDisk('vdb')]), disks, 'it is paused');
    await machine.resume();
    const after = await machine.waitUntilWriting({ after: before.sequence });
    t.equal(after.runId, before.runId, 'it was not booted');
    for (const disk of disks) t.same([disk.missing, disk.torn, disk.runId], [[], 0, before.runId]);
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0, runId: before.runId });
  });

  await t.test('is seen to have booted cold, and to miss what was put back, when it was', async (t) => {
    const before = await machine.pauseWriter();
    await machine.destroy();
    await machine.start();
    const after = await machine.waitUntilWriting();
    t.not(after.runId, before.runId);
    t.equal(after.firstSequence, before.sequence + 1);
    await machine.destroy();
    const image = machine.imagePath('vdb');
    const lost = (1 + (before.sequence % (after.disks[1]?.ringBlocks ?? 0)) / 256) * 1024 * 1024;
    await lab.run('qemu-io', ['-f', 'raw', '-c', `write -z ${lost} 4096`, image]);
    await lab.run('qemu-io', ['-f', 'raw', '-c', `write -P 7 ${lost - 4096 + 2048} 1024`, image]);
    const disk = await machine.readDisk('vdb');
    t.same(disk.missing, [before.sequence - 1, before.sequence]);
    t.equal(disk.torn, 1);
  });

  await t.test('runs on while libvirtd is killed and started again', async (t) => {
    await machine.start();
    const before = await machine.waitUntilWriting();
    const qemu = await lab.qemuPid(machine.name);
    await lab.killLibvirtd('SIGKILL');
    await lab.startLibvirtd();
    t.equal(await lab.qemuPid(machine.name), qemu);
    t.equal((await machine.waitUntilWriting({ after: before.sequence })).runId, before.runId);
    await lab.killQemu(machine.name);
    t.equal(await eventually(async () => (await machine.state()).startsWith('shut off')), true);
  });
});

void t.test('a file system that is mounted later is seen by a guest that runs already', async (t) => {
  await using lab = await startLab();
  const machine = await lab.createMachine({ name: 'sp-late' });
  const directory = await lab.loopFilesystem('ext4', 64);
  await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', `${directory}/late.qcow2`, '16M']);
  await lab.virsh(
    'attach-disk',
    machine.uuid,
    `${directory}/late.qcow2`,
    'vdb',
    '--subdriver',
    'qcow2',
    '--live',
  );
  t.match(await machine.xml(), 'late.qcow2');
});

const started = z.object({ root: z.string(), holderPid: z.int(), subreaperPid: z.int() });

void t.test('nothing is left of a laboratory', async (t) => {
  /** A laboratory in a process of its own, with a guest and a mounted loop device. */
  const program = `
    const { startLab } = await import(${JSON.stringify(labFile)});
    const lab = await startLab();
    await lab.createMachine({ name: 'sp-left' });
    await lab.loopFilesystem('ext4', 16);
    console.log(JSON.stringify({ root: lab.root, holderPid: lab.holderPid, subreaperPid: lab.subreaperPid }));
    setInterval(() => {}, 1000);`;
  const start = async () => {
    const child = execa(process.execPath, ['--input-type=module', '-e', program], {
      reject: false,
      buffer: { stdout: false, stderr: true },
      timeout: 120_000,
    });
    const printed: unknown = await Promise.race([once(child.stdout, 'data').then(String), child]);
    if (typeof printed !== 'string') throw new Error(`the laboratory did not start: ${(await child).stderr}`);
    return { child, ...started.parse(JSON.parse(printed)) };
  };
  const gone = (root: string) =>
    eventually(async () => (await remainders(root)).length === 0, { timeoutMs: 20_000 }).then(
      () => [],
      () => remainders(root),
    );

  await t.test('after stop', async (t) => {
    const lab = await startLab();
    await lab.createMachine({ name: 'sp-stop' });
    await lab.loopFilesystem('ext4', 16);
    t.not((await remainders(lab.root)).length, 0);
    await lab.stop();
    t.same(await remainders(lab.root), []);
  });

  for (const signal of ['SIGKILL', 'SIGINT'] as const) {
    await t.test(`after ${signal} for the test process`, async (t) => {
      const { child, root } = await start();
      child.kill(signal);
      await child;
      t.same(await gone(root), []);
    });
  }

  for (const victim of ['holderPid', 'subreaperPid'] as const) {
    await t.test(
      `after SIGKILL for the ${victim === 'holderPid' ? 'holder of the namespace' : 'subreaper'}`,
      async (t) => {
        const running = await start();
        process.kill(running[victim], 'SIGKILL');
        t.same(await gone(running.root), []);
        running.child.kill('SIGKILL');
        await running.child;
      },
    );
  }
});
