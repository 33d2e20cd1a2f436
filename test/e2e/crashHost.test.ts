import t, { type Test } from 'tap';
import { checkOrder, checkStructure, onlyJob } from './crash/order.ts';
import { isFrom, knownSteps, recordedPoints } from './crash/points.ts';
import { CrashStage } from './crash/stage.ts';

void t.test('a host that crashes anywhere in a backup comes back with complete machines', async (t) => {
  await using stage = await CrashStage.start();
  const recording = await stage.backup();
  t.equal(onlyJob(t, recording)?.state, 'finished');
  const points = recordedPoints(t, recording, 'backup', knownSteps.backup);
  await stage.deleteBackups();

  for (const [index, point] of points.entries()) {
    if (!t.passing()) break;
    const newBoot = point.includes('/before:');
    // Where one step has ended the next begins: to a host that boots again both are the same.
    if (!newBoot && index % 4 !== 3) continue;
    // A merge that an idle guest has not flushed is the one thing that nobody may boot from (trap 2).
    const idle = point === 'backup/after:merge' || point === 'backup/before:flush';
    await t.test(`at ${point}${newBoot ? ', and boots again' : ', without a boot'}`, (t) =>
      crashAt(t, stage, points, { point, newBoot, idle }),
    );
  }

  await t.test('a machine that does not start with its host stays off, complete', async (t) => {
    await stage.lab.virsh('autostart', '--disable', stage.machine.uuid);
    const before = await stage.remember();
    const run = await stage.begin(
      { do: 'backup', machine: stage.machine.uuid },
      { haltAt: 'backup/before:merge' },
    );
    await run.halted();
    await Promise.all([stage.crashHost({ newBoot: true }), run.kill9()]);
    await stage.run({ do: 'repair-offline' });
    await stage.lab.startLibvirtd();
    onlyJob(t, await stage.recover());
    t.match(await stage.machine.state(), /^shut off/);
    for (const volume of stage.machine.volumes) await checkStructure(t, stage, volume.path);
    await stage.startAgain();
    await checkOrder(t, stage, before, { memory: 'lost', newBackups: 1 });
  });
});

async function crashAt(
  t: Test,
  stage: CrashStage,
  points: readonly string[],
  { point, newBoot, idle }: { readonly point: string; readonly newBoot: boolean; readonly idle: boolean },
): Promise<void> {
  if (idle) await stage.machine.pauseWriter();
  const before = await stage.remember();
  const run = await stage.begin({ do: 'backup', machine: stage.machine.uuid }, { haltAt: point });
  await run.halted();
  await Promise.all([stage.crashHost({ newBoot }), run.kill9()]);
  const { repaired, exitCode, log } = await stage.run({ do: 'repair-offline' });
  t.equal(exitCode, 0, log);
  if (idle) {
    t.same([...new Set(repaired.map(({ action }) => action))], ['frozen-image-put-back']);
    for (const { path } of stage.machine.volumes) {
      const { stdout } = await stage.lab.run('qemu-img', ['info', path]);
      t.match(stdout, /^backing file:.*frozen/m, 'no boot can see the unflushed merge');
    }
  }
  await stage.lab.startLibvirtd();
  const recovery = await stage.recover();
  const job = onlyJob(t, recovery);
  const kept = isFrom(points, newBoot ? 'backup/after:stow' : 'backup/after:swap', point);
  if (kept) t.equal(job?.state, 'finished', `T1 is not lost: ${recovery.log}`);
  if (newBoot) t.ok(await stage.isRunning(), 'what starts with the host runs again');
  if (!(await stage.isRunning())) await stage.startAgain();
  await checkOrder(t, stage, before, { memory: 'either', newBackups: job?.state === 'finished' ? 1 : 0 });
  await stage.deleteBackups();
}
