import { readdir } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import * as z from 'zod';
import { Journal } from '../../../agent/jobs/journal.ts';
import { eventually, type LabMachine, type WriterStatus } from '../../lab/lab.ts';
import { labProcesses, processFile } from '../../lab/sweep.ts';
import type { RunEnd } from './agentRun.ts';
import { type CrashStage, imageOwner, type Remembered } from './stage.ts';

/** What must be true after a crash and a recovery. */
export interface ExpectedOrder {
  /** `kept`: the guest goes on where it was; `lost`: it was booted cold; `either`: depends on the moment. */
  readonly memory: 'kept' | 'lost' | 'either';
  /** How many backups more there must be. */
  readonly newBackups: number;
  /** `paused`: as its owner had suspended it; it is resumed to be asked. */
  readonly state?: 'running' | 'paused' | undefined;
}

/**
 * Checks that nothing is lost and nothing is left: the machine runs, its content is complete inside and outside,
 * everything that belongs to its owner is as it was, and no trace of any job remains but finished backups, each
 * of which verifies and holds one instant.
 */
export async function checkOrder(
  t: Test,
  stage: CrashStage,
  before: Remembered,
  expected: ExpectedOrder,
): Promise<void> {
  const { machine } = stage;
  t.match(
    await machine.state(),
    new RegExp(`^${expected.state ?? 'running'}`),
    'the machine is as its owner had it',
  );
  if (expected.state === 'paused') await machine.resume();
  await checkGuest(t, stage, before, expected.memory);
  await checkImages(t, stage);
  t.equal(await machine.xml('inactive'), before.persistentXml, 'the persistent definition is as before');
  t.equal(await stage.autostart(), before.autostart, 'autostart is as before');
  await checkNothingLeft(t, stage);
  await checkBackups(t, stage, before, expected.newBackups);
}

async function checkGuest(
  t: Test,
  stage: CrashStage,
  before: Remembered,
  memory: ExpectedOrder['memory'],
): Promise<void> {
  const { machine } = stage;
  const now = await machine.waitUntilWriting();
  const kept = now.runId === before.writer.runId;
  if (memory !== 'either') t.equal(kept, memory === 'kept', `the guest's memory is ${memory}`);
  const last = before.acknowledged ?? before.writer;
  const acknowledged = Math.min(...last.disks.map((disk) => disk.sequence));
  if (kept) {
    t.ok(now.sequence >= before.writer.sequence, 'the guest goes on after what it had done');
  } else {
    stage.cutRounds.add(now.firstSequence - 1);
    t.ok(
      now.firstSequence > acknowledged,
      `the cold guest found all that was acknowledged (${now.firstSequence} > ${acknowledged})`,
    );
  }
  await checkContent(t, stage, machine, now);
  if (before.writer.paused && kept) await machine.pauseWriter();
}

/** Content of both volumes as the guest reads them, and as others read the images. */
async function checkContent(
  t: Test,
  stage: CrashStage,
  machine: LabMachine,
  status: WriterStatus,
): Promise<void> {
  const inside = await machine.verifyFromInside();
  t.match(inside, { missing: 0, torn: 0, newer: 0, readErrors: 0 }, 'the guest reads all that it wrote');
  t.ok(inside.checked > 0, 'and it wrote something');
  t.equal((await machine.writerStatus()).writeErrors, 0, 'no write has failed');
  const memory = await machine.pauseWriter();
  for (const { target, sequence } of memory.disks) {
    const disk = await machine.readDisk(target);
    t.equal(disk.highestSequence, sequence, `${target} ends where the memory does`);
    t.same(
      [disk.missing.filter((missing) => !stage.cutRounds.has(missing)), disk.torn],
      [[], 0],
      `${target} is complete`,
    );
  }
  if (!status.paused) await machine.continueWriter();
}

/** One image for each volume again, with its owner. */
async function checkImages(t: Test, stage: CrashStage): Promise<void> {
  const { lab, machine } = stage;
  const live = await machine.xml('live');
  t.equal(
    live.split('<backingStore/>').length - 1,
    machine.volumes.length,
    'the machine runs on one image for each volume',
  );
  for (const volume of machine.volumes) {
    const { stdout } = await lab.run('qemu-img', [
      'info',
      '-U',
      '--backing-chain',
      '--output=json',
      volume.path,
    ]);
    t.equal(z.array(z.unknown()).parse(JSON.parse(stdout)).length, 1, `${volume.target} stands alone`);
    const expected = stage.ownersForgotten ? { mode: imageOwner.mode } : imageOwner;
    t.match(await stage.ownerOf(volume.path), expected, `${volume.target} has its owner, group and mode`);
  }
}

/** No file, process or job of ours is left anywhere. */
export async function checkNothingLeft(
  t: Test,
  stage: CrashStage,
  machines: readonly LabMachine[] = [stage.machine],
): Promise<void> {
  const { lab } = stage;
  const images = machines.flatMap((machine) => machine.volumes.map((volume) => path.basename(volume.path)));
  t.same((await readdir(lab.imagesDir)).toSorted(), images.toSorted(), 'beside the images is nothing');
  const ram = await lab.run('find', [
    lab.ramDir,
    '-mindepth',
    '1',
    '-not',
    '-path',
    `${lab.ramDir}/stillpoint`,
  ]);
  t.equal(ram.stdout, '', 'on the RAM disk is nothing');
  const left = await lab.run('find', [stage.storage.location, '-name', '.*']);
  t.equal(left.stdout, '', 'no work is left in the storage');
  using journal = new Journal(path.join(stage.stateDir, 'journal.sqlite'), { readOnly: true });
  t.same(journal.holding(), [], 'no job holds the machine');
  await eventually(async () => (await strays(stage)).length === 0).catch(async () =>
    t.same(await strays(stage), [], 'no process is left'),
  );
}

/** Processes in the laboratory that are neither its own nor QEMU of a machine that libvirt knows. */
async function strays(stage: CrashStage): Promise<readonly string[]> {
  const running = (await stage.lab.virsh('list', '--name')).split('\n').filter((name) => name !== '');
  const found: string[] = [];
  for (const pid of await labProcesses(stage.lab.root)) {
    const command = (await processFile(pid, 'cmdline')).replaceAll('\0', ' ');
    const known =
      /^(libvirtd|sleep infinity|tini|)( |$)/.test(command) ||
      running.some((name) => command.includes(`guest=${name},`));
    if (!known) found.push(`${pid} ${command}`);
  }
  return found;
}

/** Every listed backup can be trusted: each byte is what was stored, and all volumes are of one instant. */
async function checkBackups(
  t: Test,
  stage: CrashStage,
  before: Remembered,
  newBackups: number,
): Promise<void> {
  const entries = (await stage.storage.list()).filter(
    (entry) => !before.backups.includes(entry.id ?? entry.directory),
  );
  t.equal(entries.length, newBackups, `${newBackups} backup(s) more`);
  for (const entry of entries) {
    t.same([entry.state, entry.problem], ['Active', null]);
    t.match(
      await stage.storage.verify(entry, { data: true }),
      { ok: true, data: true },
      'the backup verifies',
    );
    const highest: number[] = [];
    for (const volume of entry.manifest?.volumes ?? []) {
      const file = path.join(entry.directory, volume.file);
      await checkStructure(t, stage, file);
      const disk = await stage.lab.readDisk(file, { regionMiB: 8 });
      t.same(
        [disk.missing.filter((missing) => !stage.cutRounds.has(missing)), disk.torn],
        [[], 0],
        `${volume.target} at T1 is complete`,
      );
      t.ok(
        disk.highestSequence >= Math.min(...before.writer.disks.map(({ sequence }) => sequence)),
        `${volume.target} is of this backup's T1`,
      );
      highest.push(disk.highestSequence);
    }
    t.equal(highest.length, stage.machine.volumes.length);
    t.ok(
      Math.max(...highest) - Math.min(...highest) <= 1,
      `all volumes are of one instant (${highest.join(', ')})`,
    );
  }
}

/** An image is sound; clusters that a crash has leaked cost space and nothing else (qemu-img's exit code 3). */
export async function checkStructure(t: Test, stage: CrashStage, file: string): Promise<void> {
  const { exitCode, stdout } = await stage.lab.run('qemu-img', ['check', file], { check: false });
  t.ok(exitCode === 0 || exitCode === 3, `${path.basename(file)} is sound: ${stdout}`);
}

/**
 * Proves the newest backup by resuming it as another machine, which must find on its disks exactly what is in
 * its memory, and takes that machine away again.
 */
export async function checkResumable(t: Test, stage: CrashStage, runId: string): Promise<void> {
  const name = 'sp-proof';
  const job = onlyJob(
    t,
    await stage.run({ do: 'restore', backup: `${stage.machine.name}@latest`, as: name }),
  );
  t.equal(job?.state, 'finished', job?.message ?? '');
  const proof = await stage.lab.findMachine(name);
  try {
    const status = await proof.waitUntilWriting();
    t.equal(status.runId, runId, 'the restored machine goes on from memory');
    t.match(
      await proof.verifyFromInside(),
      { missing: 0, torn: 0, newer: 0, readErrors: 0 },
      'and finds all on its disks',
    );
  } finally {
    await proof.remove();
  }
}

/** The job of a run that must have brought exactly one to its end. */
export function onlyJob(t: Test, end: RunEnd): RunEnd['jobs'][number] | undefined {
  t.equal(end.exitCode, 0, `the agent ends well: ${end.log}`);
  t.equal(end.jobs.length, 1, 'one job was brought to its end');
  const job = end.jobs[0];
  t.equal(job?.holdsMachine, false, `it is not parked: ${job?.message ?? ''}`);
  return job;
}
