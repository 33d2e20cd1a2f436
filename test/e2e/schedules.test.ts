import t from 'tap';
import * as z from 'zod';
import { eventually, type Lab, type LabAgent, startLab } from '../lab/lab.ts';

type Service = ReturnType<LabAgent['background']>;

const machinesSchema = z.object({
  machines: z.array(
    z.looseObject({
      name: z.string(),
      schedule: z
        .object({
          nextAt: z.string().nullable(),
          last: z.looseObject({ result: z.string(), jobId: z.string().nullable() }).nullable(),
        })
        .nullable(),
    }),
  ),
});
const checksSchema = z.object({
  checks: z.array(z.object({ name: z.string(), verdict: z.string() })),
});

/**
 * Slow enough that something can happen while a machine is read. Mode `auto` is `disk` for a machine that runs; one that
 * has just been defined is off.
 */
const policy = {
  mode: 'auto',
  schedule: { every: '1h', retries: { count: 3, firstDelaySeconds: 1 } },
  read: { bandwidthBytesPerSecond: 4 * 1024 * 1024 },
  keep: { last: 1 },
};

void t.test('the service backs up real machines by their schedules', async (t) => {
  let lab: Lab;
  let agent: LabAgent;
  let service: Service;
  const told: Service[] = [];
  t.before(async () => {
    lab = await startLab();
    agent = await lab.installAgent({ rest: { policies: { default: policy } } });
    await addMachine('sp-first');
  });
  t.after(() => lab.stop());

  const addMachine = async (name: string): Promise<void> => {
    const machine = await lab.createMachine({
      name,
      memoryMiB: 96,
      volumes: [{ target: 'vda', prefillMiB: 16 }],
    });
    await machine.waitUntilWriting();
  };
  const said = (message: string, machine: string): boolean =>
    service
      .output()
      .stderr.split('\n')
      .some((line) => line.includes(message) && line.includes(`"machine":"${machine}"`));
  const untilSaid = async (message: string, machine: string): Promise<void> => {
    const look = (): boolean => {
      if (said(message, machine)) return true;
      throw new Error(
        `the service has not said "${message}" of ${machine}, but:\n${told.map((one) => one.output().stderr).join('\n')}`,
      );
    };
    await eventually(look, { timeoutMs: 60_000 });
  };
  const start = async (): Promise<void> => {
    service = agent.background(['agent'], { timeoutMs: 300_000 });
    told.push(service);
    await eventually(() => service.output().stderr.includes('the agent is ready'), { timeoutMs: 60_000 });
  };
  const scheduleOf = async (name: string) => {
    const { machines } = machinesSchema.parse((await agent.run(['machines', '--json'])).json());
    return machines.find((machine) => machine.name === name)?.schedule;
  };
  const verdict = async (): Promise<string | undefined> => {
    const { checks } = checksSchema.parse((await agent.run(['doctor', '--json'])).json());
    return checks.find(({ name }) => name === 'schedules')?.verdict;
  };

  await t.test('without a service, doctor tells that nobody acts on the schedule', async (t) => {
    t.equal(await verdict(), 'fail');
    const status = await agent.run(['status']);
    t.match(status, { exitCode: 3, stderr: /schedule, and the service does not run/ });
    t.match(await scheduleOf('sp-first'), { last: null });
  });

  await t.test('a new schedule begins with a backup, and machines shows it', async (t) => {
    await start();
    await untilSaid('scheduled backup succeeded', 'sp-first');
    const schedule = await scheduleOf('sp-first');
    t.match(schedule, { last: { result: 'succeeded' } });
    t.ok(Date.parse(schedule?.nextAt ?? '') > Date.now() + 50 * 60_000, 'the next one is in an hour');
    t.equal(await verdict(), 'ok');
  });

  await t.test(
    'a machine is found when libvirt tells of it, and a killed service is made up for',
    async (t) => {
      await addMachine('sp-second');
      await untilSaid('scheduled backup begun', 'sp-second');
      await service.kill9();
      t.equal(await verdict(), 'fail');
      await start();
      await untilSaid('scheduled backup succeeded', 'sp-second');
      t.match(await scheduleOf('sp-second'), { last: { result: 'succeeded' } });
      t.notOk(said('scheduled backup begun', 'sp-first'), 'what has run does not run again');
    },
  );

  await t.test('a signal ends the service, and what it gives up the next one does again', async (t) => {
    await addMachine('sp-third');
    await untilSaid('scheduled backup begun', 'sp-third');
    service.kill('SIGTERM');
    t.match(await service.done, { exitCode: 0 });
    // So small a backup may have ended before the signal came.
    if (said('scheduled backup succeeded', 'sp-third')) return;
    await start();
    await untilSaid('scheduled backup succeeded', 'sp-third');
    service.kill('SIGTERM');
    t.match(await service.done, { exitCode: 0 });
    const backups = z.object({ backups: z.array(z.unknown()) });
    t.equal(backups.parse((await agent.run(['list', '--json'])).json()).backups.length, 3);
  });
});
