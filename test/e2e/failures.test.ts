import { readdir } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { type BackgroundRun, eventually, type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import {
  type Answer,
  answerOf,
  hasBlockJob,
  requireError,
  requireFinished,
  requireNothingLost,
  TestAgent,
  type Witness,
  witness,
} from './support.ts';

const mib = 1024 * 1024;
const slowMerge = { policies: { default: { merge: { bandwidthBytesPerSecond: 8 * mib } } } };

/** Fills a file system up to `leaveBytes`; gives the file that does it. */
async function fill(lab: Lab, directory: string, leaveBytes: number): Promise<string> {
  const free = Number((await lab.run('df', ['--output=avail', '-B1', directory])).stdout.split('\n')[1]);
  const filler = path.join(directory, 'filler');
  await lab.run('fallocate', ['-l', String(free - leaveBytes), filler]);
  return filler;
}

/** The backup that failed is done by `retry`, and can be read. */
async function requireRetried(
  t: Test,
  lab: Lab,
  agent: TestAgent,
  failed: Answer,
  whole: Witness,
): Promise<void> {
  requireFinished(t, await agent.ask({ kind: 'retry', id: failed.job?.id ?? '' }));
  await requireNothingLost(t, lab, agent, whole);
  t.match((await agent.ask({ kind: 'verify', backup: `${whole.machine.name}@latest` })).result, { ok: true });
}

void t.test('a backup that cannot go on leaves the machine whole', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({ name: 'sp-whole', volumes: [{ target: 'vda', prefillMiB: 24 }] });
  const whole = await witness(lab, machine);
  const backups = async (storage: string): Promise<readonly string[]> =>
    (await readdir(lab.outside(storage), { recursive: true })).filter((name) =>
      name.endsWith('manifest.json'),
    );

  await t.test('a RAM disk without room: the state goes beside the images, with a warning', async (t) => {
    const ramDisk = await lab.smallTmpfs(16);
    const small = await TestAgent.install(lab, { name: 'small-ram', agent: { ramDisk } });
    const answer = await small.backup(machine);
    requireFinished(t, answer);
    t.ok(
      answer.warnings.some((warning) => warning.includes(ramDisk)),
      'a warning names it',
    );
    await requireNothingLost(t, lab, small, whole);
    t.match((await small.ask({ kind: 'verify', backup: 'sp-whole@latest' })).result, { ok: true });
  });

  await t.test('a RAM disk that fills up while memory is written: the machine runs on', async (t) => {
    const ramDisk = await lab.smallTmpfs(140);
    const filling = await TestAgent.install(lab, { name: 'filling-ram', agent: { ramDisk } });
    // The job's directory in it is made before the pause.
    const script = 'while [ -z "$(ls "$0")" ]; do :; done; exec fallocate -l 120M "$0/filler"';
    const filler = lab.background('sh', ['-c', script, ramDisk], { timeoutMs: 60_000 });
    const answer = await filling.backup(machine);
    t.equal((await filler.done).exitCode, 0);
    requireError(t, answer, 'CANNOT_SAVE_MACHINE_STATE');
    await requireNothingLost(t, lab, filling, whole);
    t.same(await readdir(lab.outside(ramDisk)), ['filler'], 'nothing of ours is on the RAM disk');
    t.same(await backups(filling.setup.storageDir), [], 'there is no backup');
  });

  await t.test('a storage without room is found before anything is touched', async (t) => {
    const full = await TestAgent.install(lab, {
      name: 'full',
      storages: { local: { kind: 'directory', path: await lab.smallTmpfs(32) } },
    });
    requireError(t, await full.backup(machine), 'STORAGE_FULL');
    await requireNothingLost(t, lab, full, whole);
  });

  await t.test('a storage that fills up meanwhile: the job waits, and retry finishes it', async (t) => {
    const storage = await lab.smallTmpfs(300);
    const filling = await TestAgent.install(lab, {
      name: 'filling',
      storages: { local: { kind: 'directory', path: storage } },
      rest: slowMerge,
    });
    const answer = answerOf(filling.start({ kind: 'backup', machine: machine.uuid }));
    await eventually(() => hasBlockJob(lab, machine, 'vda'), { timeoutMs: 60_000 });
    const filler = await fill(lab, storage, 8 * mib);
    const failed = await answer;
    requireError(t, failed, 'STORAGE_FULL');
    t.equal(failed.job?.holdsMachine, true, 'the job is parked');
    await requireNothingLost(t, lab, filling, whole, { parked: true });
    t.same(await backups(storage), [], 'what is not complete is no backup');
    requireError(t, await filling.backup(machine), 'UNFINISHED_JOB');
    await lab.run('rm', [filler]);
    await requireRetried(t, lab, filling, failed, whole);
  });

  await t.test('a storage that fills up meanwhile: cancel gives the job up', async (t) => {
    const storage = await lab.smallTmpfs(300);
    const filling = await TestAgent.install(lab, {
      name: 'cancelled',
      storages: { local: { kind: 'directory', path: storage } },
      rest: slowMerge,
    });
    const answer = answerOf(filling.start({ kind: 'backup', machine: machine.uuid }));
    await eventually(() => hasBlockJob(lab, machine, 'vda'), { timeoutMs: 60_000 });
    await fill(lab, storage, 8 * mib);
    const cancelled = await filling.ask({ kind: 'cancel', id: (await answer).job?.id ?? '' });
    t.equal(cancelled.job?.state, 'cancelled');
    await requireNothingLost(t, lab, filling, whole);
    t.same(
      await readdir(lab.outside(path.join(storage, 'sp-whole'))).catch(() => []),
      [],
      'nothing partial is left',
    );
  });

  await t.test('a storage that is read-only', async (t) => {
    const storage = await lab.smallTmpfs(300);
    await lab.run('mount', ['-o', 'remount,ro', storage]);
    const readOnly = await TestAgent.install(lab, {
      name: 'ro',
      storages: { local: { kind: 'directory', path: storage } },
    });
    requireError(t, await readOnly.backup(machine), 'STORAGE_READ_ONLY');
    await requireNothingLost(t, lab, readOnly, whole);
  });

  await t.test('a storage that hangs, as a network mount does whose server is gone', async (t) => {
    const storage = await lab.loopFilesystem('ext4', 300);
    const hanging = await TestAgent.install(lab, {
      name: 'hangs',
      storages: { local: { kind: 'directory', path: `${storage}/backups`, stallSeconds: 3 } },
    });
    await lab.run('mkdir', [`${storage}/backups`]);
    await lab.run('fsfreeze', ['-f', storage]);
    const run = hanging.start({ kind: 'backup', machine: machine.uuid });
    try {
      // A call into a frozen file system cannot be killed: the process ends when it thaws, its job is over before.
      await eventually(() => run.output().stdout.includes('}'), { timeoutMs: 120_000 });
      t.match(await machine.verifyFromInside(), { missing: 0, torn: 0 });
    } finally {
      await lab.run('fsfreeze', ['-u', storage]);
    }
    const failed = await answerOf(run);
    requireError(t, failed, 'STORAGE_UNREACHABLE');
    await requireRetried(t, lab, hanging, failed, whole);
  });

  await t.test('images in a directory that cannot be written', async (t) => {
    await lab.run('mount', ['--bind', lab.imagesDir, lab.imagesDir]);
    await lab.run('mount', ['-o', 'remount,bind,ro', lab.imagesDir]);
    requireError(t, await agent.backup(machine), 'RETAIN_DIRECTORY_READ_ONLY');
    await lab.run('umount', [lab.imagesDir]);
    await requireNothingLost(t, lab, agent, whole);
  });

  await t.test('a retain directory on another file system', async (t) => {
    const policy = { retainDirectory: await lab.smallTmpfs(16) };
    const elsewhere = await TestAgent.install(lab, {
      name: 'elsewhere',
      rest: { policies: { default: policy } },
    });
    requireError(t, await elsewhere.backup(machine), 'RETAIN_DIRECTORY_ELSEWHERE');
    await requireNothingLost(t, lab, elsewhere, whole);
  });

  await t.test('a second backup while one is under way', async (t) => {
    const slow = await TestAgent.install(lab, { name: 'slow', rest: slowMerge });
    const first = answerOf(slow.start({ kind: 'backup', machine: machine.uuid }));
    await eventually(() => hasBlockJob(lab, machine, 'vda'), { timeoutMs: 60_000 });
    requireError(t, await slow.backup(machine), 'MACHINE_BUSY');
    requireFinished(t, await first);
    await requireNothingLost(t, lab, slow, whole);
    t.equal((await backups(slow.setup.storageDir)).length, 1);
  });
});

void t.test('a file system of images without room is found before anything is touched', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const directory = await lab.loopFilesystem('ext4', 200);
  const volumes = [{ target: 'vda', prefillMiB: 40, path: `${directory}/sp-tight.qcow2` }];
  const machine = await lab.createMachine({ name: 'sp-tight', volumes });
  const whole = await witness(lab, machine);
  const filler = await fill(lab, directory, 24 * mib);
  requireError(t, await agent.backup(machine), 'NOT_ENOUGH_DISK_SPACE');
  await requireNothingLost(t, lab, agent, whole);
  await lab.run('rm', [filler]);
  requireFinished(t, await agent.backup(machine));
  await requireNothingLost(t, lab, agent, whole);
});

/**
 * Has libvirt's own hook start a process that takes QEMU's lock on the machine's image just before QEMU does,
 * as long as the flag file is there. Holders end when their pid file's process is killed.
 */
async function installLocker(
  lab: Lab,
  machine: LabMachine,
): Promise<{ readonly arm: () => Promise<void>; readonly release: () => Promise<void> }> {
  const hook = path.join(lab.root, 'etc/hooks/qemu');
  const flag = path.join(lab.root, 'tmp/lock-it');
  const pids = path.join(lab.root, 'tmp/lockers');
  await lab.run('mkdir', ['-p', path.dirname(hook)]);
  const script = `#!/bin/sh
[ "$1" = ${machine.name} ] && [ "$2" = prepare ] && [ -e ${flag} ] || exit 0
qemu-io -f qcow2 -c 'sleep 120000' ${machine.imagePath()} </dev/null >/dev/null 2>&1 &
holder=$!
echo $holder >>${pids}
# It opens the frozen image below last: then it has its locks.
until ls -l /proc/$holder/fd | grep -q frozen; do sleep 0.02; done
`;
  await lab.run('tee', [hook], { input: script });
  await lab.run('chmod', ['0755', hook]);
  // libvirtd looks for hooks when it starts.
  await lab.restartLibvirtd();
  return {
    arm: async () => void (await lab.run('touch', [flag])),
    release: async () => {
      await lab.run('rm', ['-f', flag]);
      await lab.run('sh', ['-c', `kill $(cat ${pids}); rm ${pids}`]);
    },
  };
}

void t.test('an image that another process locks during the pause', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({ name: 'sp-locked' });
  const locker = await installLocker(lab, machine);
  const whole = await witness(lab, machine);

  const backupUntilLocked = async (): Promise<BackgroundRun> => {
    const run = agent.start({ kind: 'backup', machine: machine.uuid });
    await eventually(() => /Failed to get .*lock/.test(run.output().stderr), { timeoutMs: 60_000 });
    return run;
  };

  await t.test('keeps its memory, and comes back when the lock is gone', async (t) => {
    await locker.arm();
    const run = await backupUntilLocked();
    t.match(await machine.state(), /^paused/, 'it stands still, and is not off');
    await locker.release();
    requireFinished(t, await answerOf(run));
    await requireNothingLost(t, lab, agent, whole);
  });

  await t.test('keeps its memory also when the agent dies meanwhile', async (t) => {
    await locker.arm();
    const run = await backupUntilLocked();
    await run.kill9();
    t.match(await machine.state(), /^paused/, 'it stands still, and is not off');
    await locker.release();
    await agent.ask({ kind: 'recover' });
    await requireNothingLost(t, lab, agent, whole);
  });

  await t.test('can be backed up again', async (t) => {
    requireFinished(t, await agent.backup(machine));
    await requireNothingLost(t, lab, agent, whole);
  });
});
