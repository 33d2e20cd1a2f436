import t from 'tap';
import { eventually } from '../lab/lab.ts';
import { inMerge } from './crash/interrupt.ts';
import { checkOrder, checkStructure, onlyJob } from './crash/order.ts';
import { CrashStage } from './crash/stage.ts';

void t.test('what the owner does with his machine is respected across a crash', async (t) => {
  await using stage = await CrashStage.start({
    volumes: [{ target: 'vda', prefillMiB: 16 }, { target: 'vdb' }],
  });

  for (const point of [
    'before:save',
    'after:save',
    'after:swap',
    'after:restore',
    'after:resume',
    'after:merge',
    'after:flush',
  ]) {
    if (!t.passing()) break;
    await t.test(`a machine that he has suspended stays suspended: agent killed at ${point}`, async (t) => {
      const before = await stage.remember();
      await stage.machine.suspend();
      t.equal((await stage.backup({ crashAt: `backup/${point}` })).signal, 'SIGKILL');
      const job = onlyJob(t, await stage.recover());
      await checkOrder(t, stage, before, {
        memory: 'kept',
        state: 'paused',
        newBackups: job?.state === 'finished' ? 1 : 0,
      });
      await stage.deleteBackups();
    });
  }

  for (const agentToo of [false, true]) {
    await t.test(
      `a machine that he shuts down in the merge stays off${agentToo ? '; agent killed then' : ''}`,
      async (t) => {
        const before = await stage.remember();
        const run = await stage.begin({ do: 'backup', machine: stage.machine.uuid }, { slow: true });
        await run.passed('backup/before:merge');
        await inMerge(stage);
        const acknowledged = await stage.machine.writerStatus();
        await stage.machine.command('poweroff');
        if (agentToo) await run.kill9();
        await eventually(async () => (await stage.machine.state()) === 'shut off (shutdown)', {
          timeoutMs: 30_000,
        });
        const end = agentToo ? await stage.recover() : await run.ended;
        t.equal(onlyJob(t, end)?.state, 'finished', end.log);
        t.equal(await stage.machine.state(), 'shut off (shutdown)');
        for (const volume of stage.machine.volumes) await checkStructure(t, stage, volume.path);
        await stage.startAgain();
        await checkOrder(t, stage, { ...before, acknowledged }, { memory: 'lost', newBackups: 1 });
        await stage.deleteBackups();
      },
    );
  }
});
