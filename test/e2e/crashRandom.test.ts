import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { checkOrder, onlyJob } from './crash/order.ts';
import { CrashStage } from './crash/stage.ts';

const seed = Number(process.env['STILLPOINT_CRASH_SEED'] ?? randomInt(2 ** 31));
const rounds = Number(process.env['STILLPOINT_CRASH_ROUNDS'] ?? 10);
const victims = ['agent', 'libvirtd', 'qemu', 'agent and libvirtd', 'agent and qemu'] as const;

void t.test(`kills at random moments of a backup (STILLPOINT_CRASH_SEED=${seed})`, async (t) => {
  t.comment(`STILLPOINT_CRASH_SEED=${seed} STILLPOINT_CRASH_ROUNDS=${rounds}`);
  const random = randomFrom(seed);
  await using stage = await CrashStage.start();
  let backupMs = Number.POSITIVE_INFINITY;
  for (let warmUp = 0; warmUp < 2; warmUp += 1) {
    const started = performance.now();
    t.equal(onlyJob(t, await stage.backup())?.state, 'finished');
    backupMs = Math.min(backupMs, performance.now() - started);
    await stage.deleteBackups();
  }

  for (let round = 0; round < rounds; round += 1) {
    if (!t.passing()) break;
    const victim = victims[Math.floor(random() * victims.length)] ?? 'agent';
    // A share of what a backup takes here: the same seed hits about the same steps on another machine.
    const share = random();
    await t.test(
      `round ${round}: ${victim} killed after ${Math.round(share * 100)} % of a backup`,
      async (t) => {
        const before = await stage.remember();
        const run = await stage.begin({ do: 'backup', machine: stage.machine.uuid });
        await sleep(share * backupMs);
        const agentToo = victim.startsWith('agent');
        if (agentToo) await run.kill9();
        if (victim.includes('libvirtd')) {
          // When the QEMU that it finds again ends, libvirt may not know any more whose the images were.
          stage.ownersForgotten = true;
          await stage.lab.killLibvirtd();
          await stage.lab.startLibvirtd();
        }
        const hit = victim.includes('qemu') && (await stage.lab.qemuPid(stage.machine.name)) !== undefined;
        if (hit) await stage.lab.killQemu(stage.machine.name);
        const run1 = await run.ended;
        const recovery = agentToo ? await stage.recover() : run1;
        const points = [...run1.points, ...recovery.points];
        t.comment(`after ${run1.points.at(-1) ?? 'the start'}; ended by ${points.at(-1) ?? 'nothing'}`);
        // The agent may have been killed before there was a job, or after its end.
        t.equal(recovery.exitCode === 0 || (!agentToo && points.length === 0), true, recovery.log);
        for (const job of recovery.jobs) t.equal(job.holdsMachine, false, job.message ?? '');
        const finished = [...run1.jobs, ...recovery.jobs].some((job) => job.state === 'finished');
        if (!hit) t.ok(await stage.isRunning(), 'the machine runs');
        else if (!(await stage.isRunning())) await stage.startAgain();
        await checkOrder(t, stage, before, { memory: hit ? 'either' : 'kept', newBackups: finished ? 1 : 0 });
        await stage.deleteBackups();
      },
    );
  }
});

/** Numbers in [0, 1) that follow from a seed (mulberry32, public domain). */
function randomFrom(start: number): () => number {
  let state = start >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
