import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { credentials, Metadata } from '@grpc/grpc-js';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { exists } from '../common/files.ts';
import { PushedFile } from '../config/pushedFile.ts';
import {
  AgentClient,
  type GetPoliciesResponse,
  type SetPoliciesResponse,
} from '../proto/generated/stillpoint/v1/agent.ts';
import { eventually } from '../test/lab/eventually.ts';
import { answerOf } from '../test/sim/servedSite.ts';
import { temporaryDirectory } from '../test/tls/authority.ts';

/* Policies that are pushed to a service in a process of its own, which is killed; no libvirt is asked for anything. */

const main = join(import.meta.dirname, 'main.ts');

class Host {
  readonly file: PushedFile;
  readonly #directory: string;
  readonly #service: { process?: ReturnType<typeof startService> | undefined } = {};

  constructor(t: Test, directory: string) {
    this.#directory = directory;
    this.file = new PushedFile(join(directory, 'state'));
    t.teardown(async () => void (await this.kill()));
  }

  static async create(t: Test): Promise<Host> {
    const directory = await temporaryDirectory(t, 'push');
    await writeFile(
      join(directory, 'c.yaml'),
      `agent: { stateDir: ${directory}/state, socket: ${directory}/run/agent.sock, ramDisk: null, libvirtUri: "test:///default" }
storages: { local: { kind: directory, path: ${directory} } }
`,
    );
    await execa('mkdir', [join(directory, 'state'), join(directory, 'run')]);
    return new Host(t, directory);
  }

  get configPath(): string {
    return join(this.#directory, 'c.yaml');
  }

  /** The service starts, and answers. */
  async start(): Promise<AgentClient> {
    this.#service.process = startService(this.configPath);
    const socket = join(this.#directory, 'run', 'agent.sock');
    const client = new AgentClient(`unix:${socket}`, credentials.createInsecure());
    await eventually(() => exists(socket), { timeoutMs: 30_000 });
    const waiting = new Metadata({ waitForReady: true });
    await answerOf((done) => client.getHost({ view: 0 }, waiting, done));
    return client;
  }

  /** `kill -9`. @returns its log */
  async kill(): Promise<string> {
    const { process: running } = this.#service;
    this.#service.process = undefined;
    running?.kill('SIGKILL');
    return (await running)?.stderr ?? '';
  }

  /** A command of its own. */
  async type(...words: readonly string[]): Promise<Record<string, unknown>> {
    const { stdout } = await execa(
      process.execPath,
      [main, ...words, '--json', '--config', this.configPath],
      {
        reject: false,
      },
    );
    const said: Record<string, unknown> = JSON.parse(stdout);
    return said;
  }
}

function startService(configPath: string) {
  return execa(process.execPath, [main, 'agent', '--config', configPath], {
    reject: false,
    timeout: 120_000,
    stdin: 'ignore',
    stdout: 'ignore',
  });
}

function documentOf(revision: number): string {
  return JSON.stringify({ policies: { default: { keep: { last: revision } } } });
}

function push(client: AgentClient, revision: number): Promise<SetPoliciesResponse> {
  const request = { revision: BigInt(revision), document: documentOf(revision), validateOnly: false };
  return answerOf((done) => client.setPolicies(request, done));
}

function told(client: AgentClient): Promise<GetPoliciesResponse> {
  return answerOf((done) => client.getPolicies({}, done));
}

void t.test(
  'what was answered holds after kill -9, with nobody there to push it again, and a damaged file is told',
  async (t) => {
    const host = await Host.create(t);
    const client = await host.start();
    t.match(await push(client, 3), { changed: true, policies: { revision: 3n, inForce: true } });
    await host.kill();
    client.close();

    const again = await host.start();
    t.match(await told(again), { policies: { revision: 3n, document: documentOf(3), inForce: true } });
    t.match(await host.type('policies'), {
      pushed: { revision: 3, setBy: 'socket:uid 0' },
      policies: [{ name: 'default@controller', policy: { keep: { last: 3 } } }],
    });
    t.match(
      await host.kill(),
      /"revision":3,"caller":"socket:uid 0".*policies that were pushed are kept here/,
    );
    again.close();

    await writeFile(host.file.path, 'damaged');
    const last = await host.start();
    t.match(await told(last), {
      policies: { revision: 0n, inForce: false, problems: [{ message: /damaged/ }] },
    });
    t.match(JSON.stringify(await host.type('status')), /"policies-unusable".*it is damaged/);
    t.match(await push(last, 4), { changed: true, policies: { inForce: true, problems: [] } });
    t.notMatch(JSON.stringify(await host.type('status')), /"policies-unusable"/);
    t.match(await host.kill(), /it is damaged.*some of what was pushed cannot be used/);
    last.close();
  },
);

void t.test('killed at any moment of a push, it has the old policies or the new ones', async (t) => {
  const host = await Host.create(t);
  let acknowledged = 0;
  for (let round = 1; round <= 4; round += 1) {
    const client = await host.start();
    const { policies } = await told(client);
    const found = Number(policies?.revision ?? 0n);
    t.ok(found >= acknowledged, `what was answered is there (${found}, ${acknowledged})`);
    if (found > 0) t.match(policies, { document: documentOf(found), inForce: true, problems: [] });
    t.same(
      (await readdir(host.file.directory)).filter((name) => name.endsWith('.tmp')),
      [],
    );
    acknowledged = found;
    // It is killed while pushes go on, each time after another number of answers.
    const wanted = found + round * 3;
    const ended = Promise.allSettled([
      (async () => {
        for (let revision = found + 1; ; revision += 1) {
          await push(client, revision);
          acknowledged = revision;
        }
      })(),
    ]);
    await eventually(() => acknowledged >= wanted, { timeoutMs: 30_000 });
    await host.kill();
    client.close();
    await ended;
  }
});
