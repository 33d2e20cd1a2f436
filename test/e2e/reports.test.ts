import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { ReportStore } from '../../controller/reportStore.ts';
import { openStub, reportJson, type Stub } from '../../controller/stub.ts';
import * as z from 'zod';
import { eventually, type Lab, type LabAgent, startLab } from '../lab/lab.ts';

type Service = ReturnType<LabAgent['background']>;

const lineSchema = z.object({
  kind: z.string(),
  sequence: z.number(),
  body: z.record(z.string(), z.unknown()),
});
type Line = z.output<typeof lineSchema>;

void t.test('a controller is told what happens on a host, whichever process does it', async (t) => {
  let lab: Lab;
  let agent: LabAgent;
  let service: Service;
  let stub: Stub | undefined;
  let listen = '127.0.0.1:0';
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-controller-'));
  const startController = async (): Promise<void> => {
    stub = await openStub({ directory, listen });
    listen = stub.address;
  };
  const stopController = async (): Promise<void> => {
    await stub?.[Symbol.asyncDispose]();
    stub = undefined;
  };
  const startService = async (): Promise<void> => {
    service = agent.background(['agent'], { timeoutMs: 300_000 });
    await eventually(() => service.output().stderr.includes('the agent is ready'), { timeoutMs: 60_000 });
  };
  t.before(async () => {
    await startController();
    lab = await startLab();
    agent = await lab.installAgent({ rest: { controller: { address: listen } } });
    const machine = await lab.createMachine({
      name: 'sp-told',
      memoryMiB: 96,
      volumes: [{ target: 'vda', prefillMiB: 16 }],
    });
    await machine.waitUntilWriting();
    await startService();
  });
  t.after(async () => {
    await stopController();
    await lab.stop();
    await rm(directory, { recursive: true });
  });
  const lines = (): readonly Line[] => {
    using store = new ReportStore(join(directory, 'reports.sqlite'));
    return [...store.reports()].map((report) => lineSchema.parse(reportJson(report)));
  };
  const untilTold = (kind: string, what: (body: Line['body']) => boolean) =>
    eventually(() => lines().find((line) => line.kind === kind && what(line.body)), {
      timeoutMs: 90_000,
      intervalMs: 200,
    });

  await t.test('host, machines and storages are told at the start', async (t) => {
    t.match((await untilTold('host', () => true)).body, { hostName: String });
    t.match((await untilTold('machine', ({ name }) => name === 'sp-told')).body, { state: 'running' });
    t.match((await untilTold('storage', ({ name }) => name === 'local')).body, { usable: true });
  });

  await t.test('a backup of a command is told with its steps, and so is what it has stored', async (t) => {
    t.equal((await agent.run(['backup', 'sp-told'])).exitCode, 0);
    const { body } = await untilTold('job', ({ ended }) => ended === true);
    t.match(body, { kind: 'backup', machineName: 'sp-told', state: 'finished' });
    t.ok(Array.isArray(body['steps']) && body['steps'].length > 3);
    const made = await untilTold('backup', ({ backupId }) => backupId === body['backupId']);
    t.match(made.body, { change: 'BACKUP_CHANGE_MADE', storage: 'local', machineName: 'sp-told' });
  });

  await t.test(
    'what happens while the controller is away, and the service is killed, is told later',
    async (t) => {
      await stopController();
      t.equal((await agent.run(['backup', 'sp-told'])).exitCode, 0);
      await service.kill9();
      t.equal((await agent.run(['backup', 'sp-told'])).exitCode, 0);
      await startController();
      await startService();
      const ended = () => lines().filter(({ kind, body }) => kind === 'job' && body['ended'] === true);
      await eventually(() => ended().length === 3, { timeoutMs: 90_000, intervalMs: 200 });
      await eventually(() => lines().filter(({ kind }) => kind === 'backup').length === 3, {
        timeoutMs: 90_000,
        intervalMs: 200,
      });
      const sequences = lines().map(({ sequence }) => sequence);
      t.same(
        sequences,
        sequences.toSorted((a, b) => a - b),
      );
      service.kill('SIGTERM');
      t.match(await service.done, { exitCode: 0 });
    },
  );
});
