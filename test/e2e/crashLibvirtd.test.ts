import t from 'tap';
import { checkOrder, onlyJob } from './crash/order.ts';
import { isFrom, knownSteps, recordedPoints } from './crash/points.ts';
import { CrashStage } from './crash/stage.ts';

void t.test('libvirtd killed anywhere in a backup or restore costs nothing', async (t) => {
  await using stage = await CrashStage.start();
  const recording = await stage.backup();
  t.equal(onlyJob(t, recording)?.state, 'finished');
  const points = recordedPoints(t, recording, 'backup', knownSteps.backup);
  await stage.deleteBackups();

  for (const [index, point] of points.entries()) {
    if (!t.passing()) break;
    const agentToo = index % 3 === 2;
    await t.test(
      `killed while the agent is at ${point}${agentToo ? ', and the agent with it' : ''}`,
      async (t) => {
        const before = await stage.remember();
        const run = await stage.begin({ do: 'backup', machine: stage.machine.uuid }, { haltAt: point });
        await run.halted();
        await stage.lab.killLibvirtd();
        if (agentToo) await run.kill9();
        // Before a step the agent meets a daemon that is not there, after it one that is new.
        else if (point.includes('/before:')) await run.release();
        await stage.lab.startLibvirtd();
        if (!agentToo && !point.includes('/before:')) await run.release();
        const end = agentToo ? await stage.recover() : await run.ended;
        const job = onlyJob(t, end);
        if (isFrom(points, 'backup/after:swap', point)) t.equal(job?.state, 'finished', end.log);
        await checkOrder(t, stage, before, { memory: 'kept', newBackups: job?.state === 'finished' ? 1 : 0 });
        await stage.deleteBackups();
      },
    );
  }

  await t.test('killed anywhere in a restore in place', async (t) => {
    const atPoint = await stage.remember();
    t.equal(onlyJob(t, await stage.backup())?.state, 'finished');
    const before = { ...atPoint, backups: await stage.backupIds() };
    for (const step of knownSteps.restore) {
      if (!t.passing()) break;
      await t.test(`killed while the agent is before ${step}`, async (t) => {
        const action = {
          do: 'restore',
          backup: `${stage.machine.name}@latest`,
          inPlace: true,
          safetyCopy: false,
        } as const;
        const run = await stage.begin(action, { haltAt: `restore/before:${step}` });
        await run.halted();
        await stage.lab.killLibvirtd();
        await run.release();
        await stage.lab.startLibvirtd();
        const end = await run.ended;
        const job = onlyJob(t, end);
        t.ok(job?.state === 'finished' || job?.state === 'failed', end.log);
        // A machine that an earlier libvirtd had started and this one stops may lose the owners of its images.
        if (job?.state !== 'finished') stage.ownersForgotten = true;
        // Undone after the machine had been powered off, it is started cold.
        await checkOrder(t, stage, before, {
          memory: job?.state === 'finished' ? 'kept' : 'either',
          newBackups: 0,
        });
      });
    }
  });
});
