import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { checkOrder, checkResumable, onlyJob } from './crash/order.ts';
import { isFrom, knownSteps, recordedPoints } from './crash/points.ts';
import { CrashStage } from './crash/stage.ts';

void t.test('an agent killed anywhere in a backup costs neither memory nor data nor order', async (t) => {
  await using stage = await CrashStage.start();
  const recording = await stage.backup();
  t.equal(onlyJob(t, recording)?.state, 'finished');
  const points = recordedPoints(t, recording, 'backup', knownSteps.backup);
  await stage.deleteBackups();
  /** Points of recovery itself, each with a crash that leads there. */
  const inRecovery = new Map<string, string>();
  /** Ways in which a backup was completed; each is proved by resuming what came out. */
  const proved = new Set<string>();

  for (const point of points) {
    if (!t.passing()) break;
    await t.test(`killed at ${point}`, async (t) => {
      const before = await stage.remember();
      t.equal((await stage.backup({ crashAt: point })).signal, 'SIGKILL');
      const recovery = await stage.recover();
      for (const passed of recovery.points)
        if (!points.includes(passed) && !inRecovery.has(passed)) inRecovery.set(passed, point);
      const job = onlyJob(t, recovery);
      // Once the overlays stand in their places, T1 is on the disk and is made a backup.
      const kept = isFrom(points, 'backup/after:swap', point);
      t.match([job?.state, job?.code], kept ? ['finished', null] : ['failed', 'AGENT_DIED'], recovery.log);
      await checkOrder(t, stage, before, { memory: 'kept', newBackups: kept ? 1 : 0 });
      const way = recovery.points.join(' ');
      if (kept && !proved.has(way)) await checkResumable(t, stage, before.writer.runId);
      proved.add(way);
      await stage.deleteBackups();
    });
  }

  await t.test('killed while its children start', async (t) => {
    for (let afterMs = 100; afterMs <= 700; afterMs += 50) {
      const run = await stage.begin({ do: 'backup', machine: stage.machine.uuid });
      await sleep(afterMs);
      t.equal((await run.kill9()).signal, 'SIGKILL', `after ${afterMs} ms; no child lives on`);
      t.equal((await stage.recover()).exitCode, 0);
    }
    await stage.deleteBackups();
  });

  await t.test('killed again while it recovers', async (t) => {
    t.ok(inRecovery.size >= 4, [...inRecovery.keys()].join(' '));
    for (const [again, point] of inRecovery) {
      if (!t.passing()) break;
      await t.test(`killed at ${point}, then at ${again}`, async (t) => {
        const before = await stage.remember();
        t.equal((await stage.backup({ crashAt: point })).signal, 'SIGKILL');
        t.equal((await stage.recover({ crashAt: again })).signal, 'SIGKILL');
        const job = onlyJob(t, await stage.recover());
        await checkOrder(t, stage, before, { memory: 'kept', newBackups: job?.state === 'finished' ? 1 : 0 });
        await stage.deleteBackups();
      });
    }
  });
});
