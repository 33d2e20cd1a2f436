import { mkdir, readdir } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { hashFile } from '../../common/copy.ts';
import { checkNothingLeft, checkOrder, onlyJob } from './crash/order.ts';
import { isFrom, knownSteps, recordedPoints } from './crash/points.ts';
import { CrashStage, type Remembered } from './crash/stage.ts';

/** The writer's pace at T1, and later: memory itself tells which of the two instants it is from. */
const paceAtPoint = 190;
const paceLater = 170;
/** From here on a restore has changed something, and is finished; before, it is dropped. */
const firstTouch = 'restore/before:stop';

/** A stage with one backup, and what was remembered just before its T1. */
async function stageWithBackup(
  t: Test,
): Promise<{ readonly stage: CrashStage; readonly atPoint: Remembered }> {
  const stage = await CrashStage.start({ nic: true });
  await stage.machine.command(`rate ${paceAtPoint}`);
  const atPoint = await stage.remember();
  t.equal(onlyJob(t, await stage.backup())?.state, 'finished');
  return { stage, atPoint: { ...atPoint, backups: await stage.backupIds() } };
}

/** Every test of this file restores the same backup. */
void t.test('an agent killed anywhere in a restore leaves it done or undone, and nothing else', async (t) => {
  const { stage, atPoint } = await stageWithBackup(t);
  await using _ = stage;
  const backup = `${stage.machine.name}@latest`;

  await t.test('in place', async (t) => {
    // Nothing may stay beside the images then; what becomes of safety copies is in the simulator's matrix.
    const inPlace = { do: 'restore', backup, inPlace: true, safetyCopy: false } as const;
    const recording = await stage.run(inPlace);
    t.equal(onlyJob(t, recording)?.state, 'finished');
    const points = recordedPoints(t, recording, 'restore', knownSteps.restore);
    for (const point of points) {
      if (!t.passing()) break;
      await t.test(`killed at ${point}`, async (t) => {
        await stage.machine.command(`rate ${paceLater}`);
        t.equal((await stage.run(inPlace, { crashAt: point })).signal, 'SIGKILL');
        const recovery = await stage.recover();
        const { rate } = await stage.machine.writerStatus();
        if (isFrom(points, firstTouch, point)) {
          t.equal(onlyJob(t, recovery)?.state, 'finished', recovery.log);
          t.equal(rate, paceAtPoint, 'the machine is back at T1');
        } else {
          t.match(onlyJob(t, recovery), { state: 'failed', code: 'AGENT_DIED' }, recovery.log);
          t.equal(rate, paceLater, 'nothing was touched yet, and nothing is any more');
        }
        await checkOrder(t, stage, atPoint, { memory: 'kept', newBackups: 0 });
      });
    }
  });

  await t.test('as a new machine', async (t) => {
    const name = 'sp-copy';
    const as = { do: 'restore', backup, as: name } as const;
    const recording = await stage.run(as);
    t.equal(onlyJob(t, recording)?.state, 'finished');
    await (await stage.lab.findMachine(name)).remove();
    const points = recordedPoints(t, recording, 'restore', knownSteps.restore);
    for (const point of points) {
      if (!t.passing()) break;
      await t.test(`killed at ${point}`, async (t) => {
        await stage.machine.command(`rate ${paceLater}`);
        t.equal((await stage.run(as, { crashAt: point })).signal, 'SIGKILL');
        const recovery = await stage.recover();
        if (!isFrom(points, firstTouch, point)) {
          t.match(onlyJob(t, recovery), { state: 'failed', code: 'AGENT_DIED' }, recovery.log);
          t.notMatch(await stage.lab.virsh('list', '--all', '--name'), name, 'there is no new machine');
          await checkNothingLeft(t, stage);
          return;
        }
        t.equal(onlyJob(t, recovery)?.state, 'finished', recovery.log);
        const copy = await stage.lab.findMachine(name);
        try {
          const status = await copy.waitUntilWriting({ after: atPoint.writer.sequence });
          t.match(
            status,
            { runId: atPoint.writer.runId, rate: paceAtPoint },
            'the new machine goes on from T1',
          );
          t.match(
            await copy.verifyFromInside(),
            { missing: 0, torn: 0, newer: 0, readErrors: 0 },
            'and has all its data',
          );
          t.equal(await stage.autostart(copy), false);
          t.equal((await stage.machine.writerStatus()).rate, paceLater, 'the original was not touched');
          await checkNothingLeft(t, stage, [stage.machine, copy]);
        } finally {
          await copy.remove();
        }
        await checkOrder(t, stage, atPoint, { memory: 'kept', newBackups: 0 });
      });
    }
  });

  await t.test('of the files', async (t) => {
    const directory = (name: string): string => path.join(stage.lab.root, 'tmp', name);
    await mkdir(directory('whole'));
    const recording = await stage.run({ do: 'restore', backup, to: directory('whole') });
    t.equal(onlyJob(t, recording)?.state, 'finished');
    const whole = await digests(directory('whole'));
    t.equal(whole.length, 6, 'two images, the memory state, the definition, kernel and initial RAM disk');
    for (const [index, point] of recordedPoints(t, recording, 'restore', knownSteps.files).entries()) {
      if (!t.passing()) break;
      await t.test(`killed at ${point}`, async (t) => {
        const to = directory(`files-${index}`);
        await mkdir(to);
        t.equal((await stage.run({ do: 'restore', backup, to }, { crashAt: point })).signal, 'SIGKILL');
        const recovery = await stage.recover();
        const job = onlyJob(t, recovery);
        t.same(
          await digests(to),
          job?.state === 'finished' ? whole : [],
          `all of them, or none: ${job?.state}`,
        );
        if (job?.state !== 'finished') t.equal(job?.code, 'AGENT_DIED');
        await checkNothingLeft(t, stage);
      });
    }
    await checkOrder(t, stage, atPoint, { memory: 'kept', newBackups: 0 });
  });
});

/** Every file below a directory with its digest; also what is hidden. */
async function digests(directory: string): Promise<string[]> {
  const found: string[] = [];
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    const file = path.join(entry.parentPath, entry.name);
    const digest = entry.isFile() ? (await hashFile(file)).sha256 : 'directory';
    found.push(`${path.relative(directory, file)} ${digest}`);
  }
  return found.toSorted();
}
