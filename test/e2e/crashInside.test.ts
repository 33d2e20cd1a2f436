import t, { type Test } from 'tap';
import { inMerge, inRestore, inSave } from './crash/interrupt.ts';
import { checkOrder, checkResumable, onlyJob } from './crash/order.ts';
import { CrashStage } from './crash/stage.ts';

/** Large enough that the merge of a volume can be met in the middle. */
const volumes = [{ target: 'vda', prefillMiB: 16 }, { target: 'vdb' }];
const operations = { save: inSave, restore: inRestore, merge: inMerge };

void t.test('a kill in the middle of a long operation costs no data', async (t) => {
  await using stage = await CrashStage.start({ volumes });
  for (const victim of ['libvirtd', 'qemu'] as const) {
    for (const agentToo of [false, true]) {
      for (const [name, inside] of Object.entries(operations)) {
        if (!t.passing()) break;
        await t.test(
          `${victim} killed in the middle of the ${name}${agentToo ? ', and the agent with it' : ''}`,
          (t) => killInside(t, stage, { victim, agentToo, name, inside }),
        );
      }
    }
  }

  await t.test('QEMU killed in a restore in place', async (t) => {
    const atPoint = await stage.remember();
    t.equal(onlyJob(t, await stage.backup())?.state, 'finished');
    const before = { ...atPoint, backups: await stage.backupIds() };
    for (const point of ['after:stage', 'after:start', 'before:cleanup']) {
      await t.test(`at ${point}`, async (t) => {
        const action = {
          do: 'restore',
          backup: `${stage.machine.name}@latest`,
          inPlace: true,
          safetyCopy: false,
        } as const;
        const run = await stage.begin(action, { haltAt: `restore/${point}` });
        await run.halted();
        await stage.killQemu();
        await run.release();
        const end = await run.ended;
        t.equal(onlyJob(t, end)?.state, 'finished', end.log);
        // Once it has started it is its owner's again, and so is its crash.
        if (!(await stage.isRunning())) await stage.startAgain();
        await checkOrder(t, stage, before, { memory: 'either', newBackups: 0 });
      });
    }
  });
});

interface Kill {
  readonly victim: 'libvirtd' | 'qemu';
  readonly agentToo: boolean;
  readonly name: string;
  readonly inside: (stage: CrashStage) => Promise<void>;
}

async function killInside(t: Test, stage: CrashStage, kill: Kill): Promise<void> {
  const { victim, agentToo, name, inside } = kill;
  const before = await stage.remember();
  const action = { do: 'backup', machine: stage.machine.uuid } as const;
  const run = await stage.begin(action, { slow: true, haltAt: `backup/before:${name}` });
  await run.halted();
  await run.release();
  await inside(stage);
  if (victim === 'libvirtd') await stage.lab.killLibvirtd();
  else await stage.lab.killQemu(stage.machine.name);
  if (agentToo) await run.kill9();
  if (victim === 'libvirtd') await stage.lab.startLibvirtd();
  const end = agentToo ? await stage.recover() : await run.ended;
  const job = onlyJob(t, end);
  // A save that was cut short leaves nothing to make a backup of; anything later does.
  if (name !== 'save') t.equal(job?.state, 'finished', `T1 is not lost: ${end.log}`);
  t.ok(await stage.isRunning(), `the machine runs: ${end.log}`);
  await checkOrder(t, stage, before, {
    memory: victim === 'libvirtd' ? 'kept' : 'either',
    newBackups: job?.state === 'finished' ? 1 : 0,
  });
  if (job?.state === 'finished') await checkResumable(t, stage, before.writer.runId);
  await stage.deleteBackups();
}
