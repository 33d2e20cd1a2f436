import t from 'tap';
import * as z from 'zod';
import {
  type AgentResult,
  eventually,
  type Lab,
  type LabAgent,
  type LabMachine,
  startLab,
} from '../lab/lab.ts';

type Service = ReturnType<LabAgent['background']>;

const name = 'sp-api';
const jobsSchema = z.object({
  jobs: z.array(z.object({ id: z.string(), state: z.string(), hold: z.string().nullable() })),
});
const errorSchema = z.object({ error: z.object({ code: z.string(), hint: z.string().nullable() }) });

/** Slow enough that something can happen while a machine is read. */
const policy = { mode: 'disk', read: { bandwidthBytesPerSecond: 2 * 1024 * 1024 } };

/** The only error that was printed with `--json`. */
function errorOf({ stderr }: Pick<AgentResult, 'stderr'>): z.infer<typeof errorSchema>['error'] {
  const line = stderr.split('\n').find((text) => text.startsWith('{"error"')) ?? '';
  return errorSchema.parse(JSON.parse(line)).error;
}

void t.test('the command line has the service of a real host do the work', async (t) => {
  let lab: Lab;
  let agent: LabAgent;
  let machine: LabMachine;
  let service: Service;
  t.before(async () => {
    lab = await startLab();
    agent = await lab.installAgent({ rest: { policies: { default: policy } } });
    machine = await lab.createMachine({ name, memoryMiB: 96, volumes: [{ target: 'vda', prefillMiB: 16 }] });
    await machine.waitUntilWriting();
    await startService();
  });
  t.after(() => lab.stop());

  const startService = async (): Promise<void> => {
    service = agent.background(['agent'], { timeoutMs: 600_000 });
    await eventually(() => service.output().stderr.includes('the agent is ready'), { timeoutMs: 60_000 });
  };
  const asked = (): number => service.output().stderr.split('"backup asked for"').length - 1;
  const jobs = async () => jobsSchema.parse((await agent.run(['jobs', '--json'])).json()).jobs;
  const begun = async (...args: readonly string[]): Promise<Service> => {
    const running = agent.background(['backup', name, '--reread', ...args], { timeoutMs: 300_000 });
    await eventually(() => running.output().stderr.includes(`${name}: retaining`), { timeoutMs: 60_000 });
    return running;
  };

  await t.test('what a backup prints is the same, whoever does it', async (t) => {
    const byService = await agent.run(['backup', name, '--label', 'a=b', '--json']);
    t.equal(byService.exitCode, 0, byService.stderr);
    t.equal(asked(), 1);
    const here = await agent.run(['backup', name, '--label', 'a=b', '--json', '--standalone']);
    t.equal(here.exitCode, 0, here.stderr);
    t.equal(asked(), 1, 'the service was not asked');
    const shapes = [byService, here].map((result) => shapeOf(result.json()));
    t.same(shapes[0], shapes[1]);
    const text = await agent.run(['backup', name]);
    t.match(
      text.stdout,
      /^backed up sp-api at .*, no pause, .*, id [0-9a-f-]{13}\n {2}mode disk: .*\n {2}local: /,
    );
    t.match(text.stderr, /sp-api: retaining\n/);
  });

  await t.test('what is refused has the same code and exit code, whoever refuses it', async (t) => {
    for (const args of [[], ['--standalone']]) {
      const unknown = await agent.run(['backup', 'nobody', '--json', ...args]);
      t.equal(unknown.exitCode, 4);
      t.equal(errorOf(unknown).code, 'MACHINE_NOT_FOUND');
      const storage = await agent.run(['backup', name, '--storage', 'none', '--json', ...args]);
      t.equal(storage.exitCode, 2);
      t.equal(errorOf(storage).code, 'STORAGE_NOT_CONFIGURED');
    }
    const watched = await agent.run(['job', 'watch', '00000000-0000', '--json']);
    t.equal(watched.exitCode, 4);
    t.equal(errorOf(watched).code, 'JOB_NOT_FOUND');
  });

  await t.test('Ctrl-C cancels the backup that the service makes', async (t) => {
    const running = await begun();
    running.kill('SIGINT');
    const { exitCode, stderr } = await running.done;
    t.equal(exitCode, 130, stderr);
    t.match(stderr, /cancelling: the service brings sp-api back in order/);
    t.match((await jobs())[0], { state: 'cancelled', hold: null });
  });

  await t.test('a command that is killed ends nothing, and another one can watch', async (t) => {
    const running = await begun();
    await running.kill9();
    const [job] = await jobs();
    const watched = await agent.run(['job', 'watch', job?.id ?? '']);
    t.equal(watched.exitCode, 0, watched.stderr);
    t.equal(watched.stdout, 'sp-api: backup finished\n'.trim());
  });

  await t.test('a job of the service is cancelled by another command', async (t) => {
    const running = await begun('--json');
    const [job] = await jobs();
    const cancelled = await agent.run(['job', 'cancel', job?.id ?? '']);
    t.match(cancelled.stdout, /^asked job .* to end/);
    t.equal((await running.done).exitCode, 130);
  });

  await t.test('a second service is refused, and the first goes on', async (t) => {
    const second = await agent.run(['agent']);
    t.equal(second.exitCode, 7, second.stderr);
    t.match(second.stderr, /SERVICE_RUNNING: .*\nhint: systemctl status/);
    t.equal((await agent.run(['backup', 'nobody'])).exitCode, 4);
    t.match(service.output().stderr, /the API is served/);
  });

  await t.test(
    'a service that is killed: the command says so and what comes next, and that works',
    async (t) => {
      const running = await begun('--json');
      const [job] = await jobs();
      await service.kill9();
      const lost = await running.done;
      t.equal(lost.exitCode, 9, lost.stderr);
      const error = errorOf(lost);
      t.equal(error.code, 'SERVICE_LOST');
      t.match(error.hint, `stillpoint job show ${job?.id}`);
      t.match((await jobs())[0], { id: job?.id, hold: 'orphaned' });
      await startService();
      await eventually(async () => (await jobs())[0]?.hold === null, { timeoutMs: 60_000 });
      t.match((await jobs())[0], { id: job?.id, state: 'failed' });
      t.equal((await agent.run(['backup', name])).exitCode, 0, 'the machine is free again');
      t.match(await machine.state(), /^running/);
    },
  );

  await t.test(
    'without a service the work is done here, also where a dead one has left its socket',
    async (t) => {
      await service.kill9();
      const here = await agent.run(['backup', name]);
      t.equal(here.exitCode, 0, here.stderr);
    },
  );
});

/** Names of all fields, and what kind of value each has. */
function shapeOf(value: unknown): unknown {
  if (Array.isArray(value)) return value.slice(0, 1).map(shapeOf);
  if (typeof value !== 'object' || value === null) return value === null ? 'null' : typeof value;
  const entries = Object.entries(value).map(([key, field]) => [key, shapeOf(field)] as const);
  return Object.fromEntries(entries.filter(([key]) => key !== 'parent' && key !== 'reason'));
}
