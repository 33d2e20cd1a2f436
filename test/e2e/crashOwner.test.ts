import t from 'tap';
import { eventually } from '../lab/lab.ts';
import type { AgentRun } from './crash/agentRun.ts';
import type { EndedJob } from './crash/command.ts';
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

void t.test('what the owner does to a machine while it is backed up does not trap him', async (t) => {
  await using stage = await CrashStage.start({ volumes: [{ target: 'vda' }] });
  const { lab, machine } = stage;
  const haltedAt = async (point: string, mode: 'save' | 'disk'): Promise<AgentRun> => {
    const run = await stage.begin(
      { do: 'backup', machine: machine.uuid, mode },
      { haltAt: `backup/${point}` },
    );
    await run.halted();
    return run;
  };
  const endOf = async (run: AgentRun): Promise<EndedJob | undefined> => {
    await run.release();
    return onlyJob(t, await run.ended);
  };

  for (const [point, mode] of [
    ['before:merge', 'save'],
    ['before:retain', 'disk'],
    ['before:commit', 'disk'],
  ] as const) {
    await t.test(
      `virsh destroy at ${point} of mode ${mode}: it stays off, and its images are whole`,
      async (t) => {
        const run = await haltedAt(point, mode);
        const acknowledged = await machine.writerStatus();
        await lab.virsh('destroy', machine.uuid);
        const job = await endOf(run);
        t.match(job, { holdsMachine: false });
        t.equal(await machine.state(), 'shut off (destroyed)');
        await checkStructure(t, stage, machine.volumes[0]?.path ?? '');
        await stage.startAgain();
        const now = await machine.waitUntilWriting();
        t.ok(now.firstSequence > acknowledged.sequence, 'the guest finds all that was acknowledged');
        t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0, readErrors: 0 });
        await stage.deleteBackups();
      },
    );
  }

  await t.test('virsh undefine while it is read: the backup is made, and the machine runs on', async (t) => {
    const xml = await lab.virsh('dumpxml', '--inactive', '--security-info', machine.uuid);
    const run = await haltedAt('before:retain', 'disk');
    await lab.virsh('undefine', machine.uuid);
    t.match(await endOf(run), { state: 'finished', holdsMachine: false });
    t.match(await machine.state(), /^running/);
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0, readErrors: 0 });
    const file = `${lab.root}/tmp/owner.xml`;
    await lab.run('tee', [file], { input: xml });
    await lab.virsh('define', file);
    await lab.virsh('autostart', machine.uuid);
    await stage.deleteBackups();
  });

  await t.test('virsh snapshot-create-as and blockcommit before the merge: the job ends', async (t) => {
    const run = await haltedAt('before:merge', 'save');
    const snapshot = ['--disk-only', '--no-metadata', '--atomic'];
    await lab.virsh('snapshot-create-as', machine.uuid, 'owner', ...snapshot);
    await lab.virsh('blockcommit', machine.uuid, 'vda', '--active', '--pivot', '--wait');
    t.match(await endOf(run), { state: 'failed', code: 'MACHINE_INTERFERED', holdsMachine: false });
    t.match(await machine.state(), /^running/);
    t.ok(await stage.autostart());
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0, readErrors: 0 });
    // What it runs on is where its next start finds it.
    const acknowledged = await machine.writerStatus();
    await lab.virsh('destroy', machine.uuid);
    await stage.startAgain();
    t.ok((await machine.waitUntilWriting()).firstSequence > acknowledged.sequence);
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0, readErrors: 0 });
    const next = await stage.begin({ do: 'backup', machine: machine.uuid, mode: 'disk' });
    t.match(onlyJob(t, await next.ended), { state: 'finished' });
  });
});
