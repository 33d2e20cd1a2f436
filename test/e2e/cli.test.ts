import { appendFile, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { formatManifest, parseManifest } from '../../storage/manifest.ts';
import {
  type AgentResult,
  eventually,
  type Lab,
  type LabAgent,
  type LabMachine,
  startLab,
} from '../lab/lab.ts';

const storedSchema = z.looseObject({
  id: z.string(),
  machine: z.object({ name: z.string() }),
  pointInTime: z.string(),
  pauseMs: z.number().nullable(),
  state: z.literal('Active'),
  labels: z.record(z.string(), z.string()),
  storages: z.array(z.object({ name: z.string(), directory: z.string(), local: z.boolean() })),
});
const errorSchema = z.object({ error: z.object({ code: z.string(), hint: z.string().nullable() }) });
const jobsSchema = z.object({
  jobs: z.array(
    z.object({
      id: z.string(),
      state: z.string(),
      hold: z.string().nullable(),
      machine: z.object({ name: z.string() }),
    }),
  ),
});

/** The objects of a result that has one on each line. */
function lines(result: AgentResult): readonly unknown[] {
  return result.stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line): unknown => JSON.parse(line));
}

/** Code of the only error that was printed. */
function errorCode(result: AgentResult): string {
  const line = result.stderr.split('\n').find((text) => text.startsWith('{"error"')) ?? '';
  return errorSchema.parse(JSON.parse(line)).error.code;
}

void t.test('the command line on a real host', async (t) => {
  let lab: Lab;
  let agent: LabAgent;
  let first: LabMachine;
  let second: LabMachine;
  t.before(async () => {
    lab = await startLab();
    const policies = { default: { mode: 'save' }, off: {} };
    agent = await lab.installAgent({ rest: { policies, machines: [{ match: 'sp-off', policy: 'off' }] } });
    [first, second] = await Promise.all([
      lab.createMachine({ name: 'sp-first', memoryMiB: 96, volumes: [{ target: 'vda', prefillMiB: 16 }] }),
      lab.createMachine({ name: 'sp-second', memoryMiB: 96 }),
    ]);
    await lab.createMachine({ name: 'sp-raw', memoryMiB: 96, volumes: [{ target: 'vda', format: 'raw' }] });
    await lab.createMachine({ name: 'sp-off', memoryMiB: 96 }, { start: false });
    await Promise.all([first.waitUntilWriting(), second.waitUntilWriting()]);
  });
  t.after(() => lab.stop());

  const backups = async (): Promise<readonly z.infer<typeof storedSchema>[]> => {
    const listed = await agent.run(['list', '--json']);
    return z.object({ backups: z.array(storedSchema) }).parse(listed.json()).backups;
  };
  const jobs = async (): Promise<z.infer<typeof jobsSchema>['jobs']> =>
    jobsSchema.parse((await agent.run(['jobs', '--json'])).json()).jobs;

  await t.test('verbs that look change nothing, also before the first job', async (t) => {
    const listed = await agent.run(['list']);
    t.match(listed, { exitCode: 0, stdout: '', stderr: 'there are no backups' });
    t.same((await lab.run('find', [agent.stateDir, agent.storageDir, '-mindepth', '1'])).stdout, '');
  });

  await t.test('machines says what each machine allows, and why not', async (t) => {
    const result = await agent.run(['machines', '--json']);
    t.equal(result.exitCode, 0);
    t.match(result.json(), {
      machines: [
        {
          name: 'sp-first',
          state: 'running',
          mode: 'save',
          policy: 'default',
          refusal: null,
          lastBackup: null,
        },
        { name: 'sp-off', state: 'shut-off', mode: 'offline', refusal: null },
        { name: 'sp-raw', mode: null, refusal: { code: 'VOLUME_RAW' } },
        { name: 'sp-second', mode: 'save' },
      ],
    });
  });

  await t.test('doctor finds the host in order, and warns of what is not as good as it can be', async (t) => {
    const result = await agent.run(['doctor', '--json']);
    t.equal(result.exitCode, 0, result.stdout);
    const { checks } = z
      .object({ checks: z.array(z.object({ name: z.string(), verdict: z.string(), message: z.string() })) })
      .parse(result.json());
    t.same(
      checks.filter(({ verdict }) => verdict === 'fail'),
      [],
    );
    t.ok(checks.some(({ name, message }) => name === 'machine sp-first' && message.startsWith('local-only')));
    t.ok(checks.some(({ name, message }) => name === 'machine sp-raw' && message.startsWith('VOLUME_RAW')));
  });

  await t.test('backup --dry-run tells the plan and does nothing', async (t) => {
    const result = await agent.run(['backup', 'sp-first', '--dry-run', '--json']);
    t.match(result, { exitCode: 0 });
    t.match(result.json(), {
      machine: { name: 'sp-first' },
      mode: 'save',
      storages: ['local'],
      volumes: [{ target: 'vda' }],
    });
    t.same(await backups(), []);
    t.same(await jobs(), []);
  });

  await t.test('two machines are backed up in one command, which tells each', async (t) => {
    const result = await agent.run(['backup', 'sp-first', 'sp-second', '--json', '--label', 'reason=test']);
    t.equal(result.exitCode, 0, result.stderr);
    const stored = lines(result).map((line) => storedSchema.parse(line));
    t.same(stored.map(({ machine }) => machine.name).toSorted(), ['sp-first', 'sp-second']);
    for (const backup of stored) {
      t.same(backup.labels, { reason: 'test' });
      t.ok((backup.pauseMs ?? 0) > 0);
      t.match(backup.storages, [{ name: 'local', local: true }]);
    }
    t.match(result.stderr, 'sp-first: finished', 'progress in lines where there is no terminal');
    t.same((await backups()).map(({ id }) => id).toSorted(), stored.map(({ id }) => id).toSorted());
  });

  await t.test(
    'partly done is 3 with a table, and the code of the failure where there is one machine',
    async (t) => {
      const partly = await agent.run(['backup', 'sp-second', 'sp-none']);
      t.equal(partly.exitCode, 3, partly.stderr);
      t.match(partly.stdout, /backed up sp-second at .*, paused /);
      t.match(partly.stdout, /sp-none +MACHINE_NOT_FOUND/);
      t.match(partly.stderr, /^MACHINE_NOT_FOUND: sp-none: .*\nhint: /m);
      const cases: readonly (readonly [string, number, string])[] = [
        ['sp-none', 4, 'MACHINE_NOT_FOUND'],
        ['sp-raw', 8, 'VOLUME_RAW'],
        ['sp-off', 8, 'MACHINE_OFF'],
      ];
      for (const [machine, exitCode, code] of cases) {
        const result = await agent.run(['backup', machine, '--mode', 'save', '--json']);
        t.equal(result.exitCode, exitCode, machine);
        t.equal(errorCode(result), code);
      }
    },
  );

  await t.test('list, show, jobs and job show tell what was done', async (t) => {
    t.match(
      (await agent.run(['list', 'sp-first'])).stdout,
      /^sp-first +\S+Z +save +memory .* Active +\S+ +local-only$/m,
    );
    const shown = await agent.run(['show', 'sp-first@latest', '--json']);
    const stored = storedSchema.parse(shown.json());
    const text = await readFile(path.join(stored.storages[0]?.directory ?? '', 'manifest.json'), 'utf8');
    t.match(shown.json(), parseManifest(text), 'the fields of the manifest');
    t.match(
      (await agent.run(['show', stored.id.slice(0, 13)])).stdout,
      /virsh restore --paused .*sp-first\.state/,
    );
    t.match(await agent.run(['show', 'sp-none@latest', '--json']), { exitCode: 4 });
    const [job] = (await jobs()).filter(({ machine }) => machine.name === 'sp-first');
    t.match(job, { state: 'finished', hold: null });
    const detail = await agent.run(['job', 'show', job?.id ?? '', '--json']);
    t.match(detail.json(), {
      backup: { id: stored.id, committed: true },
      steps: [{ name: 'preflight', status: 'done' }],
    });
    t.match(await agent.run(['job', 'watch', job?.id ?? '']), { exitCode: 0 });
    t.match(await agent.run(['job', 'retry', job?.id ?? '']), { exitCode: 8 });
    t.match(await agent.run(['job', 'show', 'ffffffff']), { exitCode: 4 });
  });

  await t.test('a reader that goes away ends no backup', async (t) => {
    const before = (await backups()).length;
    const command = path.resolve(import.meta.dirname, '../../bin/stillpoint');
    const script = '"$1" backup sp-second --config "$2" 2>&1 | true; exit "${PIPESTATUS[0]}"';
    const result = await lab.run('bash', ['-c', script, 'bash', command, agent.configFile], {
      timeoutMs: 120_000,
      check: false,
    });
    t.equal(result.exitCode, 0, result.stderr);
    t.equal((await backups()).length, before + 1);
  });

  await t.test('verify reads every byte, and damage is 5', async (t) => {
    const good = await agent.run(['verify', 'sp-first@latest', '--data', '--json']);
    t.match(good, { exitCode: 0 });
    t.match(good.json(), { ok: true, data: true });
    const [damaged] = await backups();
    const { directory } = z.object({ directory: z.string() }).parse(damaged?.storages[0]);
    const file = z.object({ definition: z.object({ file: z.string() }) }).parse(damaged).definition.file;
    await appendFile(path.join(directory, file), ' ');
    const bad = await agent.run(['verify', '--all', '--data']);
    t.equal(bad.exitCode, 5, bad.stdout);
    t.match(bad.stdout, new RegExp(`^ +(digest|size) +${file.replaceAll('.', String.raw`\.`)}`, 'm'));
    t.match(bad.stderr, /^1 of \d+ are damaged$/m);
  });

  await t.test('nothing is deleted or restored without a yes', async (t) => {
    const count = (await backups()).length;
    const asked = await agent.run(['delete', 'sp-second@latest', '--json']);
    t.equal(asked.exitCode, 2);
    t.equal(errorCode(asked), 'NOT_CONFIRMED');
    const planned = await agent.run(['restore', 'sp-second@latest', '--in-place']);
    t.equal(planned.exitCode, 2);
    t.match(planned.stdout, /over the machine sp-second/);
    t.match(planned.stderr, 'NOT_CONFIRMED');
    t.equal((await backups()).length, count);
    t.match(await agent.run(['delete', 'sp-second@latest', '--yes']), { exitCode: 0 });
    t.equal((await backups()).length, count - 1);
  });

  await t.test('hostile names in a manifest never reach the terminal', async (t) => {
    const [victim] = await backups();
    const file = path.join(victim?.storages[0]?.directory ?? '', 'manifest.json');
    const text = await readFile(file, 'utf8');
    const evil = '\u001b[2J\u009b31mevil';
    await writeFile(
      file,
      formatManifest({
        ...parseManifest(text),
        machine: { name: evil, uuid: first.uuid },
        labels: { [`${evil}\nsp-first`]: `${evil}\nsp-first` },
      }),
    );
    for (const args of [
      ['list'],
      ['list', '--json'],
      ['show', victim?.id ?? ''],
      ['verify', victim?.id ?? ''],
    ]) {
      const { stdout, stderr } = await agent.run(args);
      t.match(stdout, /evil/, args.join(' '));
      t.notMatch(`${stdout}${stderr}`.replaceAll('\n', ''), /\p{Cc}/u);
    }
    await writeFile(file, text);
  });

  await t.test('a malformed configuration is 2 with line and column, whatever the verb', async (t) => {
    const file = path.join(lab.root, 'malformed.yaml');
    await writeFile(file, 'agent:\n  stateDir: relative\n');
    for (const verb of ['machines', 'list', 'repair-offline']) {
      const result = await agent.run([verb], { env: {} });
      t.match(result, { exitCode: 0 }, `${verb} works with the good one`);
    }
    const { exitCode, stdout } = await agent.run(['doctor'], { env: {} });
    const failed = stdout.split('\n').filter((line) => line.startsWith('fail'));
    t.equal(exitCode, 1, 'doctor works with it, too, and tells what has failed before');
    t.match(failed, [
      /^fail +machine sp-off: the last backup of sp-off failed: /,
      /^fail +machine sp-raw: the last backup of sp-raw failed: /,
      // That whose manifest held another machine while it was verified.
      /^fail +machine sp-(first|second): backup \S+ of sp-\1 in storage local is not what was stored/,
    ]);
    t.match(await agent.run(['status'], { env: {} }), { exitCode: 3 }, 'as status does');
    const command = path.resolve(import.meta.dirname, '../../bin/stillpoint');
    for (const args of [['doctor'], ['backup', 'sp-first'], ['agent']]) {
      const result = await lab.run(command, args, { env: { STILLPOINT_CONFIG: file }, check: false });
      t.equal(result.exitCode, 2, args.join(' '));
      t.match(result.stderr, /^CONFIG_INVALID: .*\n +\S+malformed\.yaml:2:3: agent\.stateDir/m);
      t.match(result.stderr, /^hint: /m);
    }
  });

  await t.test(
    'a machine that is being worked on is busy, and Ctrl-C brings it back in order first',
    async (t) => {
      await agent.configure({
        rest: {
          policies: { default: { mode: 'save', merge: { bandwidthBytesPerSecond: 1024 * 1024 } } },
        },
      });
      const count = (await backups()).length;
      const running = agent.background(['backup', 'sp-first'], { timeoutMs: 300_000 });
      await eventually(() => running.output().stderr.includes('sp-first: merging'), { timeoutMs: 60_000 });
      const busy = await agent.run(['backup', 'sp-first', '--json']);
      t.equal(busy.exitCode, 7);
      t.equal(errorCode(busy), 'MACHINE_BUSY');
      t.match((await agent.run(['jobs'])).stdout, /merging \(running\)/);
      running.kill('SIGINT');
      running.kill('SIGINT');
      const ended = await running.done;
      t.equal(ended.exitCode, 130, ended.stderr);
      t.match(ended.stderr, 'bringing sp-first back in order');
      t.match(ended.stderr, /^CANCELLED: sp-first: /m);
      t.equal((await backups()).length, count);
      t.match(await first.state(), /^running/);
      const memory = await first.waitUntilWriting({ rounds: 20 });
      t.ok(memory.sequence > 0);
      t.same((await lab.run('find', [lab.imagesDir, '-name', '.stillpoint*'])).stdout, '');
      const [job] = await jobs();
      t.match(job, { state: 'cancelled', hold: null });
    },
  );

  await t.test('work of a dead process is 9 for who looks, and recovered by the agent', async (t) => {
    const running = agent.background(['backup', 'sp-first'], { timeoutMs: 300_000 });
    await eventually(() => running.output().stderr.includes('sp-first: merging'), { timeoutMs: 60_000 });
    await running.kill9();
    const [job] = await jobs();
    t.match(job, { hold: 'orphaned' });
    const listed = await agent.run(['list']);
    t.equal(listed.exitCode, 9);
    t.match(listed.stdout, 'sp-second', 'what was asked for is printed all the same');
    t.match(listed.stderr, new RegExp(`warning: .*${job?.id ?? ''}.*stillpoint agent --once`));
    t.match(await agent.run(['job', 'watch', job?.id ?? '']), { exitCode: 9 });
    const recovered = await agent.run(['agent', '--once']);
    t.equal(recovered.exitCode, 0, recovered.stderr);
    t.match(recovered.stderr, new RegExp(`job ${job?.id ?? ''} .* has ended: finished`));
    t.match(await agent.run(['list']), { exitCode: 0, stderr: '' });
    t.match(await first.state(), /^running/);
  });

  await t.test('the service takes over what died while it runs, and ends on SIGTERM', async (t) => {
    const service = agent.background(['agent'], { timeoutMs: 300_000 });
    await eventually(() => service.output().stderr.includes('the agent is ready'), { timeoutMs: 60_000 });
    const running = agent.background(['backup', 'sp-second', '--standalone'], { timeoutMs: 300_000 });
    await eventually(() => running.output().stderr.includes('sp-second: merging'), { timeoutMs: 60_000 });
    await running.kill9();
    await eventually(() => service.output().stderr.includes('job taken over and ended'), {
      timeoutMs: 120_000,
    });
    service.kill('SIGTERM');
    t.match(await service.done, { exitCode: 0 });
    t.match(await second.state(), /^running/);
    t.match((await jobs())[0], { state: 'finished', hold: null });
  });

  await t.test('prune leaves what the rules keep and what is protected, and says why', async (t) => {
    await agent.configure({ rest: { policies: { default: { keep: { last: 1 } } } } });
    const shape = z.object({
      backups: z.array(z.object({ id: z.string(), machine: z.object({ name: z.string() }) })),
    });
    const ids = async (): Promise<readonly string[]> =>
      shape.parse((await agent.run(['list', 'sp-second', '--json'])).json()).backups.map(({ id }) => id);
    const before = await ids();
    const [oldest = '', ...others] = before;
    t.ok(others.length > 1, 'there is something to remove');
    t.match(await agent.run(['protect', oldest, '--reason', 'a test']), { exitCode: 0 });
    const refused = await agent.run(['delete', oldest, '--yes', '--json']);
    t.equal(refused.exitCode, 8);
    t.equal(errorCode(refused), 'BACKUP_PROTECTED');
    const { stdout } = await agent.run(['prune', 'sp-second', '--dry-run']);
    t.match(stdout, / keep +protected$/m);
    t.match(stdout, / remove +no rule keeps it$/m);
    t.match(stdout, / keep +last 1 \(1st\), the last good one$/m);
    t.match(await agent.run(['prune', 'sp-second']), { exitCode: 2, stderr: /NOT_CONFIRMED/ });
    t.same(await ids(), before);
    t.match(await agent.run(['prune', 'sp-second', '--yes']), { exitCode: 0 });
    t.same(await ids(), [oldest, others.at(-1)]);
  });
});
