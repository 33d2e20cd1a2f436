import t, { type Test } from 'tap';
import { checkOrder, checkStructure, onlyJob } from './crash/order.ts';
import { isFrom, knownSteps, recordedPoints } from './crash/points.ts';
import { CrashStage, type Remembered } from './crash/stage.ts';

void t.test('a QEMU killed anywhere in a backup loses its memory and nothing else', async (t) => {
  await using stage = await CrashStage.start();
  const recording = await stage.backup();
  t.equal(onlyJob(t, recording)?.state, 'finished');
  const points = recordedPoints(t, recording, 'backup', knownSteps.backup);
  await stage.deleteBackups();

  const withoutQemu: string[] = [];
  for (const point of points) {
    if (!t.passing()) break;
    // What a step finds and what it leaves is the same to QEMU: the agent survives the one and not the other.
    const agentToo = !point.includes('/before:');
    // Outside of the window in which the job holds the machine, a QEMU that goes is its owner's affair.
    if (agentToo && !isInHand(points, point)) continue;
    await t.test(
      `killed while the agent is at ${point}${agentToo ? ', and the agent with it' : ''}`,
      async (t) => {
        const hit = await killAt(t, stage, points, point, { agentToo, idle: false });
        if (!hit) withoutQemu.push(point);
      },
    );
  }
  t.same(
    withoutQemu,
    ['save', 'swap', 'restore']
      .flatMap((step) => [`backup/before:${step}`, `backup/after:${step}`])
      .slice(1, 5),
    'there is none while the machine is saved',
  );

  for (const agentToo of [false, true]) {
    const suffix = agentToo ? ', and the agent with it' : '';
    // An idle guest flushes nothing by itself: the merged image is empty on the disk until we flush it (trap 2).
    for (const [when, point] of [
      ['not flushed', 'backup/before:flush'],
      ['flushed', 'backup/after:flush'],
    ] as const) {
      await t.test(`killed when an idle guest is merged and ${when}${suffix}`, async (t) => {
        t.ok(await killAt(t, stage, points, point, { agentToo, idle: true }));
      });
    }
  }

  await stage.machine.destroy();
  for (const volume of stage.machine.volumes) await checkStructure(t, stage, volume.path);
});

/** The job has the machine in its hands, and must bring it back. */
function isInHand(points: readonly string[], point: string): boolean {
  return isFrom(points, 'backup/before:guard', point) && !isFrom(points, 'backup/after:flush', point);
}

/** @returns false when there is no QEMU at this moment */
async function killAt(
  t: Test,
  stage: CrashStage,
  points: readonly string[],
  point: string,
  how: { readonly agentToo: boolean; readonly idle: boolean },
): Promise<boolean> {
  if (how.idle) await stage.machine.pauseWriter();
  let before = await stage.remember();
  const run = await stage.begin({ do: 'backup', machine: stage.machine.uuid }, { haltAt: point });
  await run.halted();
  const hit = (await stage.lab.qemuPid(stage.machine.name)) !== undefined;
  if (hit) before = await killNow(stage, before);
  if (how.agentToo) await run.kill9();
  else await run.release();
  const end = how.agentToo ? await stage.recover() : await run.ended;
  const job = onlyJob(t, end);
  if (isFrom(points, 'backup/after:restore', point))
    t.equal(job?.state, 'finished', `T1 is not lost: ${end.log}`);
  // While the job has the machine in its hands it brings it back; before and after, a crash is its owner's affair.
  const ours = isInHand(points, point);
  if (ours) t.ok(await stage.isRunning(), 'the job has started the machine again');
  if (!(await stage.isRunning())) await stage.startAgain();
  const ran = isFrom(points, 'backup/after:resume', point);
  await checkOrder(t, stage, before, {
    memory: hit && ran ? 'lost' : 'either',
    newBackups: job?.state === 'finished' ? 1 : 0,
  });
  await stage.deleteBackups();
  return hit;
}

/** Kills QEMU; what the running guest has said before counts as acknowledged. */
async function killNow(stage: CrashStage, before: Remembered): Promise<Remembered> {
  const running = (await stage.machine.state()).startsWith('running');
  const acknowledged = running ? await stage.machine.writerStatus() : before.writer;
  await stage.killQemu();
  return { ...before, acknowledged };
}
