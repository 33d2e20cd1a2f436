import { readdir } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { eventually, type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import { QemuMonitor } from '../lab/qemuMonitor.ts';
import {
  answerOf,
  hasBlockJob,
  requireError,
  requireFinished,
  requireNothingLost,
  requireWriterWhole,
  TestAgent,
  type Witness,
  witness,
} from './support.ts';

const mib = 1024 * 1024;

/** Every trap twice: as the product is, and with the cure taken out, which must show the damage. */
const cures = ['with the cure', 'without the cure'] as const;

void t.test('trap 1: libvirt would restore the machine on the overlay alone', async (t) => {
  for (const cure of cures) {
    await t.test(
      `${cure} the guest ${cure === 'with the cure' ? 'has its data' : 'reads zeros'}`,
      async (t) => {
        await using lab = await startLab();
        const agent = await TestAgent.install(lab);
        const machine = await lab.createMachine({
          name: 'sp-cut',
          volumes: [{ target: 'vda' }, { target: 'vdb' }],
        });
        const whole = await witness(lab, machine);
        await machine.pauseWriter();
        // The agent ends there, so that the guest is seen as it was resumed, before anything is merged.
        const crashAt = 'backup/after:resume';
        const switches = cure === 'without the cure' ? (['keep-backing-stores'] as const) : [];
        t.match((await agent.backup(machine, { crashAt, switches })).log, 'killed');
        const seen = await machine.verifyFromInside();
        t.equal(seen.runId, whole.writer?.runId, 'the guest was resumed');
        if (cure === 'with the cure') t.match(seen, { missing: 0, torn: 0, newer: 0 });
        else t.equal(seen.missing, seen.checked, 'not one of its blocks is there');

        await machine.continueWriter();
        await agent.ask({ kind: 'recover' });
        if (cure === 'with the cure') {
          await requireNothingLost(t, lab, agent, whole);
        } else {
          // What was in the guest's memory cannot be saved any more; what it had written can.
          await requireBootedWhole(t, lab, agent, whole);
        }
      },
    );
  }
});

/** The machine was started again, and has all that it had completed before `since`. */
async function requireBootedWhole(t: Test, lab: Lab, agent: TestAgent, since: Witness): Promise<void> {
  const { machine, before, writer } = since;
  const now = await machine.waitUntilWriting({ rounds: 20 });
  t.not(now.runId, writer?.runId, 'the guest has booted');
  t.ok(now.firstSequence > (writer?.sequence ?? 0), 'it found what it had written');
  const frozenSequence = now.firstSequence - 1;
  await machine.pauseWriter();
  for (const { target } of machine.volumes) {
    const disk = await machine.readDisk(target);
    t.match(disk, { missing: [], torn: 0 }, `${target} has it all, up to ${frozenSequence} and on`);
  }
  await machine.continueWriter();
  await requireNothingLost(t, lab, agent, { machine, before, writer: now });
}

void t.test('trap 2: QEMU says that a merge is complete before it is on the disk', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);

  for (const cure of cures) {
    const title = `${cure} an image ${cure === 'with the cure' ? 'is whole' : 'reads zeros'} after the death of an idle QEMU`;
    await t.test(title, async (t) => {
      const machine = await lab.createMachine({
        name: cure === 'with the cure' ? 'sp-flushed' : 'sp-unflushed',
      });
      await machine.waitUntilWriting({ rounds: 50 });
      const idle = await machine.pauseWriter();
      const switches = cure === 'without the cure' ? (['trust-stream-completion'] as const) : [];
      requireFinished(t, await agent.backup(machine, { switches }));
      await lab.killQemu(machine.name);
      const disk = await machine.readDisk();
      const check = await lab.run('qemu-img', ['check', machine.imagePath()]);
      if (cure === 'with the cure') {
        t.match(disk, { runId: idle.runId, highestSequence: idle.sequence, missing: [], torn: 0 });
      } else {
        t.equal(disk.count, 0, 'nothing is left on the disk');
        t.match(check.stdout, 'No errors were found', 'and no check finds it');
      }
    });
  }

  await t.test('what dies between completion and flush is repaired by recovery', async (t) => {
    const machine = await lab.createMachine({
      name: 'sp-between',
      volumes: [{ target: 'vda' }, { target: 'vdb' }],
    });
    const whole = await witness(lab, machine);
    await machine.pauseWriter();
    t.match((await agent.backup(machine, { crashAt: 'backup/before:flush' })).log, 'killed');
    await lab.killQemu(machine.name);
    t.equal((await machine.readDisk()).count, 0, 'the image reads zeros');
    await agent.ask({ kind: 'recover' });
    await requireBootedWhole(t, lab, agent, whole);
  });
});

/** A machine whose image is alone on a small file system, which somebody fills while its merge is under way. */
async function fillDuringMerge(
  lab: Lab,
  agent: TestAgent,
  machine: LabMachine,
  directory: string,
  cure: (typeof cures)[number],
): Promise<{
  readonly answer: ReturnType<typeof answerOf>;
  readonly filler: string;
  readonly ioErrors: () => string;
}> {
  const events = lab.background('virsh', ['-q', 'event', '--event', 'io-error-reason', '--loop'], {
    timeoutMs: 120_000,
  });
  const switches = cure === 'without the cure' ? (['ignore-full-target'] as const) : [];
  const answer = answerOf(agent.start({ kind: 'backup', machine: machine.uuid }, { switches }));
  await eventually(() => hasBlockJob(lab, machine, 'vda'), { timeoutMs: 60_000 });
  const free = Number((await lab.run('df', ['--output=avail', '-B1', directory])).stdout.split('\n')[1]);
  const filler = path.join(directory, 'filler');
  // Room for what the guest writes meanwhile, but not for the merge.
  await lab.run('fallocate', ['-l', String(free - 12 * mib), filler]);
  return { answer, filler, ioErrors: () => events.output().stdout };
}

void t.test('trap 4: a merge that fills its file system pauses the guest', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab, {
    rest: { policies: { default: { merge: { bandwidthBytesPerSecond: 5 * mib } } } },
  });
  for (const cure of cures) {
    const title = `${cure} the guest ${cure === 'with the cure' ? 'runs on, and the merge waits for room' : 'stands still'}`;
    await t.test(title, async (t) => {
      const directory = await lab.loopFilesystem('ext4', 320);
      const name = cure === 'with the cure' ? 'sp-room' : 'sp-full';
      const volumes = [{ target: 'vda', sizeMiB: 160, prefillMiB: 80, path: `${directory}/${name}.qcow2` }];
      const machine = await lab.createMachine({ name, volumes, rate: 50 });
      const whole = await witness(lab, machine);
      const { answer, filler, ioErrors } = await fillDuringMerge(lab, agent, machine, directory, cure);
      let id: string | undefined;
      if (cure === 'with the cure') {
        const failed = await answer;
        requireError(t, failed, 'NOT_ENOUGH_DISK_SPACE');
        t.equal(ioErrors(), '', 'the guest never stood still');
        await requireNothingLost(t, lab, agent, whole, { parked: true });
        id = failed.job?.id;
      } else {
        await eventually(async () => (await machine.state()) === 'paused (I/O error)', { timeoutMs: 60_000 });
        t.match(ioErrors(), 'enospc', 'the guest stands still');
        await lab.run('rm', [filler]);
        id = (await answer).job?.id;
      }
      await lab.run('rm', ['-f', filler]);
      const jobs = await agent.jobs();
      if (jobs.some((job) => job.id === id && job.holdsMachine)) {
        requireFinished(t, await agent.ask({ kind: 'retry', id: id ?? '' }));
      }
      await requireNothingLost(t, lab, agent, whole);
      if (whole.writer !== undefined) await requireWriterWhole(t, machine, whole.writer);
      await machine.destroy();
    });
  }
});

void t.test('trap 7: a backup whose merge ends while libvirtd dies is completed', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab, {
    rest: { policies: { default: { merge: { bandwidthBytesPerSecond: mib } } } },
  });
  const machine = await lab.createMachine({ name: 'sp-noted', volumes: [{ target: 'vda', prefillMiB: 24 }] });
  const whole = await witness(lab, machine);
  const answer = agent.backup(machine);
  await eventually(() => hasBlockJob(lab, machine, 'vda'), { timeoutMs: 60_000 });
  await lab.killLibvirtd();
  await endPullUnnoted(lab, machine);
  await lab.startLibvirtd();
  requireFinished(t, await answer);
  await requireNothingLost(t, lab, agent, whole);
});

void t.test('trap 7: what libvirt shows then, and that a second pull puts it right', async (t) => {
  await using lab = await startLab();
  const machine = await lab.createMachine({ name: 'sp-stale', volumes: [{ target: 'vda', prefillMiB: 24 }] });
  const overlay = path.join(lab.imagesDir, 'owner.qcow2');
  const disk = ['--disk-only', '--no-metadata', '--diskspec', `vda,file=${overlay}`];
  await lab.virsh('snapshot-create-as', machine.uuid, 'owner', ...disk);
  await lab.virsh('blockpull', machine.uuid, 'vda', '--bandwidth', '1');
  await lab.killLibvirtd();
  await endPullUnnoted(lab, machine);
  await lab.startLibvirtd();
  t.equal(await hasBlockJob(lab, machine, 'vda'), false, 'it knows of no job');
  const image = machine.volumes[0]?.path ?? '';
  t.match(await machine.xml(), image, 'and shows the image below, which QEMU has let go');
  await lab.virsh('blockpull', machine.uuid, 'vda');
  await eventually(async () => !(await machine.xml()).includes(image));
});

/** What libvirtd does first when a pull has ended, in its place: it must not be there. */
async function endPullUnnoted(lab: Lab, machine: LabMachine): Promise<void> {
  const directory = path.join(lab.root, 'lib/qemu');
  const name = (await readdir(directory)).find((entry) => entry.endsWith(`-${machine.name}`));
  await using monitor = await QemuMonitor.connect(path.join(directory, name ?? '', 'monitor.sock'));
  const [job] = await monitor.jobs();
  if (job === undefined) throw new Error('no pull runs any more');
  await monitor.ask('block-job-set-speed', { device: job.id, speed: 0 });
  await eventually(async () => (await monitor.jobs())[0]?.status === 'concluded', { timeoutMs: 30_000 });
  await monitor.ask('job-dismiss', { id: job.id });
}
