import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { CertificateAuthority } from '../../controller/ca.ts';
import { agentCredentials } from '../../controller/agentChannel.ts';
import {
  AgentClient,
  type GetJobResponse,
  JobState,
  RestoreStart,
  type SetPoliciesResponse,
  type StartRestoreResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { type BackgroundRun, eventually, type Lab, type LabAgent, startLab } from '../lab/lab.ts';
import { answerOf, watched } from '../sim/servedSite.ts';

/* A host of real machines and its controller, as an administrator sets them up: each a process of its own. */

const tokenSchema = z.object({ token: z.string(), caFingerprint: z.string() });
const joinedSchema = z.looseObject({ hostId: z.uuid() });
const listedSchema = z.object({ backups: z.array(z.looseObject({ id: z.string() })) });

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('it listens on no port');
  return address.port;
}

void t.test('a controller directs a host that has joined it, and is told what happens there', async (t) => {
  let lab: Lab;
  let agent: LabAgent;
  let controller: BackgroundRun;
  let service: BackgroundRun | undefined;
  let client: AgentClient | undefined;
  let hostId = '';
  let backup = '';
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-controller-'));
  const [controllerPort, hostPort] = [await freePort(), await freePort()];
  const ca = await CertificateAuthority.open(directory);
  t.before(async () => {
    lab = await startLab();
    agent = await lab.installAgent();
    await agent.configure({
      agent: {
        listen: `127.0.0.1:${hostPort}`,
        delegatedRestore: { directories: [join(lab.root, 'restored')], inPlace: false },
      },
      rest: { policies: { default: { mode: 'disk' } } },
    });
    await lab.run('mkdir', [join(lab.root, 'restored')]);
    const machine = await lab.createMachine({
      name: 'sp-far',
      memoryMiB: 96,
      volumes: [{ target: 'vda', prefillMiB: 16 }],
    });
    await machine.waitUntilWriting();
    const listen = ['--listen', `127.0.0.1:${controllerPort}`];
    controller = agent.background(['controller', '--stub', '--tls', '--dir', directory, ...listen, '--json']);
    await eventually(() => controller.output().stderr.includes('listening on'), { timeoutMs: 60_000 });
  });
  t.after(async () => {
    client?.close();
    ca[Symbol.dispose]();
    await service?.kill9();
    await controller.kill9();
    await lab.stop();
    await rm(directory, { recursive: true });
  });
  const host = (): AgentClient => {
    if (client === undefined) throw new Error('the host has not joined');
    return client;
  };
  const running = (): BackgroundRun => {
    if (service === undefined) throw new Error('the service was not started');
    return service;
  };
  const told = (): string => controller.output().stdout;
  const untilTold = (what: RegExp) =>
    eventually(
      () =>
        told()
          .split('\n')
          .find((line) => what.test(line)),
      {
        timeoutMs: 120_000,
        intervalMs: 100,
      },
    );

  await t.test('the host joins with a one-time token, and reports from then on', async (t) => {
    const made = await agent.run(['controller', 'token', '--ca', directory, '--json']);
    const { token, caFingerprint } = tokenSchema.parse(made.json());
    const words = ['agent', 'join', `127.0.0.1:${controllerPort}`, '--token-stdin'];
    const joining = [...words, '--ca-fingerprint', caFingerprint, '--json'];
    const joined = await agent.run(joining, { input: `${token}\n` });
    t.equal(joined.exitCode, 0, joined.stderr);
    ({ hostId } = joinedSchema.parse(joined.json()));
    const repeated = await agent.run([...joining, '--yes'], { input: `${token}\n` });
    t.match(repeated.json(), { hostId }, 'a command that was cut short can be repeated');
    service = agent.background(['agent'], { timeoutMs: 600_000 });
    await eventually(() => running().output().stderr.includes('listens for the controller'), {
      timeoutMs: 60_000,
    });
    await untilTold(/"kind":"machine".*"sp-far"/);
    const credentials = agentCredentials(ca.controllerMaterial(), hostId, (serial) => ca.isGood(serial));
    client = new AgentClient(`127.0.0.1:${hostPort}`, credentials, {
      'grpc.ssl_target_name_override': 'host',
    });
  });

  await t.test('a schedule that it pushes backs the machine up, and both sides know of it', async (t) => {
    const policies = { far: { mode: 'disk', schedule: { every: '1h' } } };
    const document = JSON.stringify({ policies, machines: [{ match: 'sp-*', policy: 'far' }] });
    const answer = await answerOf<SetPoliciesResponse>((done) =>
      host().setPolicies({ revision: 1n, document, validateOnly: false }, done),
    );
    t.match(answer, { changed: true, policies: { revision: 1n, inForce: true } });
    await untilTold(/"kind":"backup".*"BACKUP_CHANGE_MADE"/);
    const { backups } = listedSchema.parse((await agent.run(['list', '--json'])).json());
    t.equal(backups.length, 1);
    backup = backups[0]?.id ?? '';
    t.match(told(), new RegExp(`"kind":"job".*"finished".*${backup}|"kind":"job".*${backup}.*"finished"`));
    const shown = await agent.run(['policies']);
    t.match(shown.stdout, /far@controller/);
  });

  await t.test('it has the backup restored where the host allows it, and nowhere else', async (t) => {
    const restore = (to: string, idempotencyKey: string) =>
      answerOf<StartRestoreResponse>((done) =>
        host().startRestore(
          {
            idempotencyKey,
            acceptedConflicts: [],
            restore: {
              backup,
              storage: '',
              target: { $case: 'newMachine', value: { name: 'sp-copy', directory: to } },
              start: RestoreStart.RESTORE_START_NONE,
              volumes: [],
              instant: false,
              networks: {},
            },
          },
          done,
        ),
      );
    await t.rejects(restore(join(lab.root, 'elsewhere'), 'r0'), /PERMISSION_DENIED|delegatedRestore/);
    const { job } = await restore(join(lab.root, 'restored'), 'r1');
    const id = job?.id ?? '';
    await watched(host(), id);
    const ended = await answerOf<GetJobResponse>((done) => host().getJob({ id }, done));
    t.match(ended.job, { state: JobState.JOB_STATE_FINISHED, error: undefined });
    const names = (await lab.virsh('list', '--all', '--name')).split('\n').filter((name) => name !== '');
    t.same(new Set(names), new Set(['sp-far', 'sp-copy']));
    const imageIn = async (place: string): Promise<string> =>
      (await lab.run('find', [place, '-name', '*-vda.qcow2*', '!', '-name', '*.sums'])).stdout.trim();
    const [stored, made] = [await imageIn(agent.storageDir), await imageIn(join(lab.root, 'restored'))];
    t.match((await lab.run('qemu-img', ['compare', stored, made])).stdout, 'Images are identical');
  });

  await t.test('the schedule goes on without it, and what it missed is told when it is back', async (t) => {
    controller.kill('SIGTERM');
    t.match(await controller.done, { exitCode: 0 });
    t.equal((await agent.run(['backup', 'sp-far'])).exitCode, 0, 'by hand, since the hour is long');
    const listen = ['--listen', `127.0.0.1:${controllerPort}`];
    controller = agent.background(['controller', '--stub', '--tls', '--dir', directory, ...listen, '--json']);
    await untilTold(/"kind":"backup".*"BACKUP_CHANGE_MADE"/);
  });

  await t.test('a host that is revoked is spoken with no more', async (t) => {
    const revoked = await agent.run(['controller', 'revoke', '--ca', directory, '--host-id', hostId]);
    t.equal(revoked.exitCode, 0, revoked.stderr);
    await eventually(() => running().output().stderr.includes('reports wait in the outbox'), {
      timeoutMs: 120_000,
    });
    t.equal((await agent.run(['backup', 'sp-far'])).exitCode, 0, 'it goes on by itself');
    running().kill('SIGTERM');
    t.match(await running().done, { exitCode: 0 });
  });
});
