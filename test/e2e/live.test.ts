import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { constants, getPriority, setPriority } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { isErrno } from '../../common/errors.ts';
import { eventually, type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import {
  answerOf,
  artifact,
  blockOf,
  requireError,
  requireFinished,
  requireNothingLost,
  type StoredBackup,
  TestAgent,
  witness,
} from './support.ts';

const regionMiB = 40;
const pivotMs = 3_000;
const pivotsMax = 20;
const switchMs = 60_000;
/** For either of libvirtd and QEMU to do what the other one has asked for. */
const turnMs = 60;
const volumes = [{ target: 'vda' }, { target: 'vdb', format: 'raw' as const }];

/** The frozen volumes are whole and no further apart than one write; gives the last number on vda. */
async function requireFrozenWhole(t: Test, lab: Lab, backup: StoredBackup, runId: string): Promise<number> {
  const last: number[] = [];
  for (const { target } of volumes) {
    const disk = await lab.readDisk(artifact(backup, target), { regionMiB });
    t.match(disk, { runId, missing: [], torn: 0 }, `${target}: none missing, none torn`);
    last.push(disk.highestSequence);
  }
  const [vda = 0, vdb = 0] = last;
  t.ok(vda > 0 && (vda === vdb || vda === vdb + 1), `vda ends with ${vda}, vdb with ${vdb}: at one instant`);
  return vda;
}

/** A machine that was brought back from its memory wrote the next number, and the last frozen one only once. */
async function requireGoesOnBehind(
  t: Test,
  lab: Lab,
  machine: LabMachine,
  backup: StoredBackup,
  last: number,
): Promise<void> {
  await eventually(async () => (await machine.writerStatus()).sequence > last, { timeoutMs: 60_000 });
  const { runId, disks } = await machine.pauseWriter();
  const { ringBlocks, sequence } = disks[0] ?? { ringBlocks: 1, sequence: 0 };
  t.ok(sequence > last && sequence - last < ringBlocks - 1, `it wrote ${sequence - last} numbers since T1`);
  const image = machine.imagePath('vda');
  const frozen = await blockOf(lab, artifact(backup, 'vda'), last, ringBlocks);
  t.equal(
    (await blockOf(lab, image, last, ringBlocks)).sha256,
    frozen.sha256,
    `${last} was not written again`,
  );
  t.match(await blockOf(lab, image, last + 1, ringBlocks), { sequence: last + 1, runId });
  t.match(await machine.verifyFromInside(), { runId, missing: 0, torn: 0, newer: 0, readErrors: 0 });
  await machine.continueWriter();
}

void t.test('mode "live" takes memory and volumes at one instant while the machine runs', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({ name: 'sp-live', regionMiB, volumes, cdrom: true });

  for (const rate of [200, 0]) {
    await t.test(`volumes and memory go on from each other, at rate ${rate}`, async (t) => {
      await machine.command(`rate ${rate}`);
      const whole = await witness(lab, machine);
      requireFinished(t, await agent.backup(machine, { mode: 'live' }));
      await requireNothingLost(t, lab, agent, whole);
      const backup = await agent.latest(machine.name);
      const { manifest } = backup;
      t.match(manifest, { mode: 'live', modeReason: 'asked for', consistency: 'memory' });
      t.match(manifest.memory, { running: true });
      t.ok(manifest.pauseMs !== null && manifest.pauseMs < 5_000, `pause: ${manifest.pauseMs} ms`);
      const { runId = '' } = whole.writer ?? {};
      const last = await requireFrozenWhole(t, lab, backup, runId);
      requireFinished(t, await agent.restore('sp-live@latest', { inPlace: true, start: 'resume' }));
      t.equal((await machine.writerStatus()).runId, runId, 'it is the same run');
      await requireGoesOnBehind(t, lab, machine, backup, last);
    });
  }

  await t.test('the backup can be restored by hand, with qemu-img and virsh alone', async (t) => {
    const { runId } = await machine.writerStatus();
    const backup = await agent.latest(machine.name);
    const last = await requireFrozenWhole(t, lab, backup, runId);
    await machine.destroy();
    for (const { target, path, format } of machine.volumes)
      await lab.run('qemu-img', ['convert', '-f', 'qcow2', '-O', format, artifact(backup, target), path]);
    await lab.virsh('restore', `${backup.directory}/${backup.manifest.memory?.file}`);
    await requireGoesOnBehind(t, lab, machine, backup, last);
  });

  for (const step of ['snapshot', 'mark', 'retain', 'merge', 'verify']) {
    await t.test(`an agent that dies after "${step}" is taken over, and nothing is lost`, async (t) => {
      const whole = await witness(lab, machine);
      const killed = await agent.backup(machine, { mode: 'live', crashAt: `backup/after:${step}` });
      t.match(killed.log, /killed/);
      const recovered = await agent.ask({ kind: 'recover' });
      t.notOk(recovered.error, recovered.log);
      await requireNothingLost(t, lab, agent, whole);
      const { manifest } = await agent.latest(machine.name);
      t.ok(Date.parse(manifest.pointInTime) > Date.now() - 60_000, 'the backup was finished');
    });
  }

  await t.test('a machine that runs on an overlay comes back with it, whoever dies', async (t) => {
    const whole = await witness(lab, machine);
    await agent.backup(machine, { mode: 'live', crashAt: 'backup/after:retain' });
    await lab.killQemu(machine.name);
    const { runId } = whole.writer ?? { runId: '' };
    await eventually(async () => (await machine.state()).startsWith('shut off'));
    await agent.ask({ kind: 'recover' });
    const booted = await machine.waitUntilWriting({ rounds: 5 });
    t.not(booted.runId, runId, 'it was started again');
    await requireNothingLost(t, lab, agent, { ...whole, writer: booted });
    t.ok(
      booted.firstSequence > (whole.writer?.sequence ?? 0),
      'and found what it had written on the overlay',
    );
  });

  await t.test('a machine that its owner switches off meanwhile is merged while it is off', async (t) => {
    const whole = await witness(lab, machine);
    await agent.backup(machine, { mode: 'live', crashAt: 'backup/after:retain' });
    await machine.destroy();
    requireNoError(t, await agent.ask({ kind: 'recover' }));
    t.match(await machine.state(), 'shut off', 'it stays off');
    await machine.start();
    const booted = await machine.waitUntilWriting({ rounds: 5 });
    await requireNothingLost(t, lab, agent, { ...whole, writer: booted });
    t.ok(booted.firstSequence > (whole.writer?.sequence ?? 0), 'it finds what it had written on the overlay');
  });

  await t.test(
    'a libvirtd that dies before it knows of the overlays leads nobody back behind them',
    async (t) => {
      let whole = await witness(lab, machine);
      for (const turns of [3, 4, 2, 3, 5, 4, 3]) {
        const backup = agent.start({ kind: 'backup', machine: machine.uuid, mode: 'live' });
        await killAtSwitch(lab, machine, turns);
        await lab.startLibvirtd();
        const { log } = await answerOf(backup);
        if (/libvirt does not know of it/.test(log)) break;
        // With overlays open that nobody knows of, QEMU takes no further snapshot.
        t.comment(`not after ${turns} turns`);
        await agent.ask({ kind: 'recover' });
        await machine.destroy();
        await machine.start();
        await machine.waitUntilWriting();
        whole = await witness(lab, machine);
      }
      const { sequence } = await machine.writerStatus();
      const [job] = (await agent.jobs()).filter(({ holdsMachine }) => holdsMachine);
      t.ok(job, 'the job waits for the machine to be started anew');
      await machine.destroy();
      await machine.start();
      const booted = await machine.waitUntilWriting({ rounds: 5 });
      t.ok(booted.firstSequence > sequence, 'the next start finds all that was written on the overlays');
      await agent.ask({ kind: 'retry', id: job?.id ?? '' });
      await requireNothingLost(t, lab, agent, { ...whole, writer: booted });
    },
  );

  await t.test('a libvirtd that dies in a pivot forgets the machine, which is started again', async (t) => {
    const whole = await witness(lab, machine);
    let qemu: number | undefined;
    for (let attempt = 1, seen = false; !seen; attempt += 1) {
      await agent.backup(machine, { mode: 'live', crashAt: 'backup/merge/suspended' });
      qemu = await lab.qemuPid(machine.name);
      seen = await killInPivot(lab, machine);
      if (seen) await lab.startLibvirtd();
      else if (attempt === pivotsMax) throw new Error('no pivot was seen in the middle');
      else requireNoError(t, await agent.ask({ kind: 'recover' }));
    }
    t.match(await machine.state(), 'shut off', 'libvirt does not know it any more');
    t.ok(qemu !== undefined && existsSync(`/proc/${qemu}`), 'although its QEMU is there');
    requireNoError(t, await agent.ask({ kind: 'recover' }));
    t.notOk(existsSync(`/proc/${qemu}`), 'the forgotten QEMU has ended');
    const booted = await machine.waitUntilWriting({ rounds: 5 });
    await requireNothingLost(t, lab, agent, { ...whole, writer: booted });
    t.ok(booted.firstSequence > (whole.writer?.sequence ?? 0), 'it finds all that it had written');
  });
});

/**
 * Kills libvirtd when QEMU has switched to the overlays and libvirtd has not heard of it. For that the two go on by
 * turns: while one of them moves, the other stands still, and QEMU answers one command in each.
 * @param turns how many from the one on that opens the last overlay
 */
async function killAtSwitch(lab: Lab, machine: LabMachine, turns: number): Promise<void> {
  const [libvirtd, qemu] = [await lab.libvirtdPid(), await lab.qemuPid(machine.name)];
  if (libvirtd === undefined || qemu === undefined) throw new Error('libvirtd and the machine must run');
  await eventually(() => overlaysOf(qemu) > 0, { timeoutMs: switchMs, intervalMs: 1 });
  for (let left = turns; left > 0; ) {
    process.kill(qemu, 'SIGSTOP');
    await sleep(turnMs);
    process.kill(libvirtd, 'SIGSTOP');
    process.kill(qemu, 'SIGCONT');
    await sleep(turnMs);
    if (overlaysOf(qemu) === volumes.length) left -= 1;
    if (left > 0) process.kill(libvirtd, 'SIGCONT');
  }
  process.kill(libvirtd, 'SIGKILL');
  await eventually(() => !existsSync(`/proc/${libvirtd}`));
}

/** How many overlays a process has open. */
function overlaysOf(pid: number): number {
  const files = readdirSync(`/proc/${pid}/fd`).map((descriptor) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${descriptor}`);
    } catch (error) {
      // Closed meanwhile.
      if (isErrno(error, 'ENOENT')) return '';
      throw error;
    }
  });
  return new Set(files.filter((file) => file.endsWith('.overlay'))).size;
}

/** Kills libvirtd while its status file says what the next one cannot read; false when that was over too soon. */
async function killInPivot(lab: Lab, machine: LabMachine): Promise<boolean> {
  const pid = await lab.libvirtdPid();
  const status = `/proc/${pid}/root/run/libvirt/qemu/${machine.name}.xml`;
  const pivot = lab.background('virsh', ['blockjob', machine.name, 'vda', '--pivot']);
  const priority = getPriority();
  setPriority(constants.priority.PRIORITY_HIGHEST);
  const endMs = performance.now() + pivotMs;
  let seen = false;
  // Without a pause: it says so for some milliseconds only.
  while (!seen && performance.now() < endMs) seen = readFileSync(status, 'utf8').includes("job=''");
  if (seen) process.kill(pid, 'SIGKILL');
  setPriority(priority);
  await pivot.done;
  if (seen) await eventually(() => !existsSync(`/proc/${pid}`));
  return seen;
}

function requireNoError(t: Test, answer: Awaited<ReturnType<TestAgent['ask']>>): void {
  if (answer.error !== undefined && answer.error !== null) t.comment(answer.log);
  t.notOk(answer.error);
}

void t.test('mode "live" refuses what it cannot do, and changes nothing', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({ name: 'sp-refused' });
  await machine.waitUntilWriting({ rounds: 5 });
  await machine.suspend();
  requireError(t, await agent.backup(machine, { mode: 'live' }), 'MACHINE_STATE_UNSUITABLE');
  t.match(await machine.state(), 'paused');
  await machine.destroy();
  requireError(t, await agent.backup(machine, { mode: 'live' }), 'MACHINE_OFF');
});
