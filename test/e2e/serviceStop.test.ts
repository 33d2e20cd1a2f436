import t from 'tap';
import * as z from 'zod';
import { eventually, type Lab, type LabAgent, type LabMachine, startLab } from '../lab/lab.ts';

type Service = ReturnType<LabAgent['background']>;

const jobsSchema = z.object({
  jobs: z.array(
    z.looseObject({
      id: z.string(),
      state: z.string(),
      error: z.looseObject({ code: z.string() }).nullish(),
    }),
  ),
});

/** The merge takes half a minute: long enough to be met in its middle. */
const slow = { merge: { bandwidthBytesPerSecond: 1024 * 1024 } };
const schedule = { every: '1d', retries: { count: 3, firstDelaySeconds: 1 } };

void t.test('a merge is left to the next process of the service, which goes on with it', async (t) => {
  let lab: Lab;
  let agent: LabAgent;
  let machine: LabMachine;
  let service: Service;
  t.before(async () => {
    lab = await startLab();
    agent = await lab.installAgent({ rest: { policies: { default: { mode: 'save', schedule, ...slow } } } });
    machine = await lab.createMachine({
      name: 'sp-merge',
      memoryMiB: 96,
      volumes: [{ target: 'vda', prefillMiB: 24 }],
    });
    await machine.waitUntilWriting();
  });
  t.after(() => lab.stop());

  const start = async (): Promise<void> => {
    service = agent.background(['agent'], { timeoutMs: 300_000 });
    await eventually(() => service.output().stderr.includes('the agent is ready'), { timeoutMs: 60_000 });
  };
  const newest = async () => jobsSchema.parse((await agent.run(['jobs', '--json'])).json()).jobs[0];

  await t.test('the process ends, its machine runs, and QEMU goes on', async (t) => {
    await start();
    await eventually(async () => (await newest())?.state === 'merging', {
      timeoutMs: 120_000,
      intervalMs: 200,
    });
    const pulling = await eventually(
      async () => (await lab.virsh('blockjob', machine.name, 'vda', '--raw')).includes('Block'),
      { timeoutMs: 30_000 },
    );
    t.ok(pulling);
    service.kill('SIGTERM');
    t.match(await service.done, { exitCode: 0 });
    t.match(service.output().stderr, /job is left to the next process/);
    t.equal((await newest())?.state, 'merging');
    t.match(await lab.virsh('domstate', machine.name), /running/);
    t.match(await lab.virsh('blockjob', machine.name, 'vda', '--raw'), /Block/);
  });

  await t.test('the next one finishes the backup', async (t) => {
    await start();
    await eventually(async () => (await newest())?.state === 'finished', {
      timeoutMs: 120_000,
      intervalMs: 200,
    });
    const verified = await agent.run(['verify', `${machine.name}@latest`, '--data']);
    t.equal(verified.exitCode, 0, verified.stderr);
    service.kill('SIGTERM');
    t.match(await service.done, { exitCode: 0 });
  });
});
