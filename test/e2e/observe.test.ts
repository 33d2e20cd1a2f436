import { randomBytes } from 'node:crypto';
import { readdir, readFile, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { Receiver } from '../../agent/observe/webhookFixture.ts';
import {
  type AgentResult,
  type BackgroundRun,
  eventually,
  type Lab,
  type LabAgent,
  startLab,
} from '../lab/lab.ts';
import { keepSecret, noteSaid } from '../secrets.ts';

/*
 * A real service that is watched by all means that there are, and told to log everything. What it and every command
 * print is compared with the secrets of this host by test/secrets.ts.
 */

const trace = { env: { STILLPOINT_LOG: 'trace' } };
const lineSchema = z.looseObject({
  msg: z.string().default(''),
  jobId: z.string().nullish(),
  machine: z.string().optional(),
  machineUuid: z.string().optional(),
});
const statusSchema = z.looseObject({
  service: z.object({
    running: z.boolean(),
    pid: z.number().nullable(),
    since: z.string().nullable(),
    version: z.string().nullable(),
  }),
  machines: z.array(
    z.looseObject({ name: z.string(), lastBackups: z.array(z.object({ storage: z.string() }).loose()) }),
  ),
  problems: z.array(z.looseObject({ event: z.string() })),
});

void t.test('a host is watched, and keeps its secrets', async (t) => {
  await using receiver = await Receiver.start();
  await using lab: Lab = await startLab();
  const at = (name: string): string => path.join(lab.root, name);
  const webhookSecret = keepSecret('webhook secret', randomBytes(16).toString('hex'));
  await writeFile(at('webhook.secret'), webhookSecret, { mode: 0o600 });
  const agent: LabAgent = await lab.installAgent({
    storages: {
      // Whatever is on the disk of the test: it is past that.
      local: { kind: 'directory', path: at('local'), warnPercent: 1 },
      vault: { kind: 'repository', url: `file://${at('vault')}`, keyFile: at('vault.key') },
    },
    rest: {
      policies: { default: { mode: 'disk', schedule: { every: '1h' } } },
      metrics: { listen: '127.0.0.1:0', textfile: at('stillpoint.prom') },
      alerts: { webhooks: [{ url: receiver.url, secretFile: at('webhook.secret') }] },
    },
  });
  await lab.run('mkdir', [at('local')]);
  const done = async (args: readonly string[]): Promise<AgentResult> => {
    const result = await agent.run(args, trace);
    t.equal(result.exitCode, 0, `${args.join(' ')}: ${result.stdout}${result.stderr}`);
    return result;
  };
  await done(['storage', 'init', 'vault']);
  const password = keepSecret('VNC password', 'vncHush7');
  const machine = await lab.createMachine({
    name: 'sp-watched',
    memoryMiB: 96,
    volumes: [{ target: 'vda', prefillMiB: 8 }],
    extraDevicesXml: `<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='${password}'/>`,
  });
  await machine.waitUntilWriting({ rounds: 10 });

  const service: BackgroundRun = agent.background(['agent'], { ...trace, timeoutMs: 300_000 });
  const said = () =>
    service
      .output()
      .stderr.split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => lineSchema.parse(JSON.parse(line)));
  const lineWith = (message: string) =>
    eventually(() => said().find(({ msg }) => msg.includes(message)), { timeoutMs: 120_000 });

  await t.test('its metrics tell of the backup that its schedule asked for', async (t) => {
    const { host, port } = await lineWith('metrics are told here');
    await lineWith('scheduled backup succeeded');
    const text = await (await fetch(`http://${String(host)}:${String(port)}/metrics`)).text();
    for (const storage of ['local', 'vault'])
      t.match(
        text,
        new RegExp(
          `^stillpoint_backup_last_timestamp_seconds\\{machine="sp-watched",storage="${storage}"\\} 1`,
          'm',
        ),
      );
    t.match(text, /^stillpoint_job_bytes_total\{step="retain"\} [1-9]/m);
    t.match(text, /^stillpoint_machines_without_backup 0$/m);
  });

  await t.test('a storage that is nearly full is told to the webhook, signed', async (t) => {
    await receiver.until(1);
    t.match(receiver.received[0], {
      body: { event: 'storage-full', status: 'firing', storage: 'local', severity: 'warning' },
      headers: { 'stillpoint-signature': /^t=\d+,v1=[0-9a-f]{64}$/ },
    });
  });

  await t.test('every line about a job names its machine, by name and UUID', async (t) => {
    const lines = said().filter(({ jobId }) => typeof jobId === 'string');
    t.ok(lines.length > 5);
    for (const line of lines)
      t.match(line, { machine: 'sp-watched', machineUuid: machine.uuid }, JSON.stringify(line));
  });

  await t.test('status shows all of it, while the service runs and when it does not', async (t) => {
    const running = statusSchema.parse((await done(['status', '--json'])).json());
    t.match(running, {
      service: { running: true, since: String, version: String },
      machines: [{ name: 'sp-watched', lastBackups: [{}, {}] }],
      problems: [{ event: 'storage-full' }],
    });
    t.match((await done(['status'])).stdout, /^sp-watched +running /m);
    const watching = agent.background(['status', '--watch']);
    await eventually(() => watching.output().stdout.includes('the service runs'), { timeoutMs: 30_000 });
    const ended = await service.kill9();
    t.equal(ended.signal ?? 'SIGKILL', 'SIGKILL');
    await eventually(() => watching.output().stdout.includes('the service does not run'), {
      timeoutMs: 30_000,
    });
    watching.kill('SIGINT');
    t.match(await watching.done, { exitCode: 3 }, 'its schedule waits for a service');
  });

  await t.test('a backup that fails is seen by status', async (t) => {
    await rename(at('vault.key'), at('vault.key.away'));
    const failed = await agent.run(['backup', 'sp-watched', '--storage', 'vault'], trace);
    t.not(failed.exitCode, 0);
    const status = await agent.run(['status', '--json'], trace);
    t.equal(status.exitCode, 3, status.stderr);
    await writeFile(at('vault.key'), randomBytes(32).toString('hex'), { mode: 0o600 });
    t.not((await agent.run(['storage', 'show', 'vault'], trace)).exitCode, 0, 'another key opens nothing');
    await rename(at('vault.key.away'), at('vault.key'));
  });

  await t.test('no command tells a secret, whatever it shows', async () => {
    const commands: readonly (readonly string[])[] = [
      ['machines', '--json'],
      ['list', '--json'],
      ['show', 'sp-watched@latest', '--json'],
      ['backup', 'sp-watched', '--mode', 'live', '--verbose'],
      ['backup', '--host', '--json'],
      ['verify', 'sp-watched@latest', '--data'],
      ['storage', 'list', '--json'],
      ['storage', 'show', 'vault', '--json'],
      ['storage', 'keys', 'vault', '--json'],
      ['storage', 'check', 'vault', '--data'],
      ['restore', 'sp-watched@latest', '--as', 'sp-again', '--start', 'none', '--to', lab.imagesDir, '--yes'],
      ['jobs', '--all', '--json'],
    ];
    for (const command of commands) await done(command);
    await agent.run(['doctor', '--verbose'], trace);
  });

  await t.test('nothing that the service keeps for itself holds one', async (t) => {
    const entries = await readdir(agent.stateDir, { recursive: true, withFileTypes: true });
    const names = entries.map(({ name }) => name);
    t.ok(names.includes('journal.sqlite') && names.includes('alerts.json'));
    for (const { name, parentPath } of entries.filter((entry) => entry.isFile()))
      noteSaid(name, await readFile(path.join(parentPath, name), 'latin1'));
  });
});
