import { type ChannelCredentials, credentials, Metadata, ServerCredentials, status } from '@grpc/grpc-js';
import t from 'tap';
import { createLogger } from '../../common/log.ts';
import { withPushed } from '../../config/hostConfig.ts';
import { PushedFile } from '../../config/pushedFile.ts';
import { agentCredentials } from '../../controller/agentChannel.ts';
import {
  AgentClient,
  type GetPoliciesResponse,
  type ListMachinesResponse,
  type RemovePoliciesResponse,
  type SetPoliciesResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { answerOf, ServedSite } from '../../test/sim/servedSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';
import { enrolHost, openAuthority } from '../../test/tls/authority.ts';
import { nothingPushed } from '../../config/config.ts';
import { controllerServer } from '../service/api.ts';
import { ControllerListener } from '../service/controllerAccess.ts';
import { createApiServer } from './apiServer.ts';
import { detailOf } from './grpcErrors.ts';

/* Policies that are pushed through the real server, over the socket and over TLS. */

t.teardown(removeSharedImages);

const gold = { policies: { gold: { mode: 'disk' } }, machines: [{ match: 'm', policy: 'gold' }] };

/** A host without policies of its own, whose service follows what is pushed. */
async function pushable(): Promise<ServedSite> {
  const served = await ServedSite.create();
  follow(served);
  return served;
}

function follow(served: ServedSite): void {
  const { site, living, api } = served;
  const file = new PushedFile(site.config().agent.stateDir);
  api.context.pushed.follow = async () => {
    const local = { config: site.config(), files: [], pushed: nothingPushed };
    const { config, pushed } = withPushed(local, await file.read());
    living.agent.follow({ config, storages: living.storages, pushed });
  };
}

function set(client: AgentClient, revision: number, document: object | string): Promise<SetPoliciesResponse> {
  const text = typeof document === 'string' ? document : JSON.stringify(document);
  const request = { revision: BigInt(revision), document: text, validateOnly: false };
  return answerOf((done) => client.setPolicies(request, done));
}

function remove(client: AgentClient, revision: number): Promise<RemovePoliciesResponse> {
  return answerOf((done) => client.removePolicies({ revision: BigInt(revision) }, done));
}

function get(client: AgentClient): Promise<GetPoliciesResponse> {
  return answerOf((done) => client.getPolicies({}, done));
}

async function policyOfMachine(client: AgentClient): Promise<string | undefined> {
  const { machines } = await answerOf<ListMachinesResponse>((done) =>
    client.listMachines({ pageSize: 0, pageToken: '' }, done),
  );
  return machines[0]?.policy;
}

/** The code and the status that a call was refused with. */
async function refusal(call: Promise<unknown>): Promise<string> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof Error && 'metadata' in error && error.metadata instanceof Metadata)) throw error;
    const code = 'code' in error ? Number(error.code) : -1;
    return `${status[code] ?? ''} ${detailOf({ metadata: error.metadata })?.code ?? ''}`;
  }
  throw new Error('the call was not refused');
}

void t.test('policies are set, read back, replaced in order and taken away', async (t) => {
  await using served = await pushable();
  const client = served.client();
  t.match(await get(client), { policies: { revision: 0n, document: '', inForce: false, problems: [] } });
  t.equal(await policyOfMachine(client), 'default');
  const answer = await set(client, 2, gold);
  t.match(answer, {
    changed: true,
    policies: { revision: 2n, document: JSON.stringify(gold), setBy: 'socket:uid 0', inForce: true },
  });
  t.ok(answer.policies?.setAt);
  // The rules of its own files name no machine: the pushed one comes before their default.
  t.equal(await policyOfMachine(client), 'gold@controller');
  t.match(await set(client, 2, gold), { changed: false });
  t.equal(await refusal(set(client, 1, gold)), 'FAILED_PRECONDITION POLICIES_OUTDATED');
  t.equal(await refusal(set(client, 2, {})), 'FAILED_PRECONDITION POLICIES_REVISION_REUSED');
  t.match(await get(client), { policies: { revision: 2n, inForce: true } });
  t.match(await remove(client, 3), {
    changed: true,
    policies: { revision: 3n, document: '', inForce: false },
  });
  t.equal(await policyOfMachine(client), 'default');
  t.equal(await refusal(set(client, 2, gold)), 'FAILED_PRECONDITION POLICIES_OUTDATED');
});

void t.test('bad input gets a clear error, and changes nothing', async (t) => {
  await using served = await pushable();
  const client = served.client();
  await set(client, 1, gold);
  const before = await get(client);
  const bad: readonly (readonly [object | string, string])[] = [
    ['nonsense', 'INVALID_ARGUMENT POLICIES_INVALID'],
    [{ policies: { a: { storages: ['vault'] } } }, 'INVALID_ARGUMENT POLICIES_INVALID'],
    [{ policies: { a: { hooks: {} } } }, 'INVALID_ARGUMENT POLICIES_INVALID'],
    [' '.repeat(1024 * 1024 + 1), 'INVALID_ARGUMENT POLICIES_INVALID'],
    [' '.repeat(4 * 1024 * 1024 + 1), 'RESOURCE_EXHAUSTED '],
  ];
  for (const [document, expected] of bad) t.equal(await refusal(set(client, 2, document)), expected);
  t.equal(await refusal(set(client, 0, gold)), 'INVALID_ARGUMENT REQUEST_INVALID');
  t.equal(await refusal(set(client, 2 ** 53, gold)), 'INVALID_ARGUMENT REQUEST_INVALID');
  t.equal(await refusal(remove(client, 0)), 'INVALID_ARGUMENT REQUEST_INVALID');
  t.same(await get(client), before);
  t.equal(await policyOfMachine(client), 'gold@controller');
});

void t.test('members of the group of the socket read policies and change none', async (t) => {
  await using served = await pushable();
  await set(served.client(), 1, gold);
  const server = createApiServer(served.api.context, () => ({
    kind: 'socket',
    name: 'uid 1000',
    isPrivileged: false,
  }));
  const address = `unix:${served.site.runDirectory}/member.sock`;
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error) =>
      error === null ? resolve() : reject(error),
    );
  });
  const member = new AgentClient(address, credentials.createInsecure());
  t.match(await get(member), { policies: { revision: 1n } });
  t.equal(await refusal(set(member, 2, gold)), 'PERMISSION_DENIED CALLER_DENIED');
  t.equal(await refusal(remove(member, 2)), 'PERMISSION_DENIED CALLER_DENIED');
  t.match(await get(member), { policies: { revision: 1n, inForce: true } });
  member.close();
  server.forceShutdown();
});

void t.test('the controller of the host pushes over TLS; a host cannot', async (t) => {
  await using served = await pushable();
  const ca = await openAuthority(t, { name: 'c1' });
  const identity = { ...enrolHost(ca), generation: 1 };
  await using access = new ControllerListener(
    controllerServer(served.api.context),
    '127.0.0.1:0',
    createLogger({ level: 'silent' }),
  );
  await access.follow(identity, new Set());
  const clientWith = (channel: ChannelCredentials): AgentClient =>
    new AgentClient(`127.0.0.1:${access.port}`, channel, { 'grpc.ssl_target_name_override': 'host' });
  const good = (): boolean => true;
  const controller = clientWith(agentCredentials(ca.controllerMaterial(), identity.hostId, good));
  t.match(await set(controller, 1, gold), { policies: { setBy: 'controller:c1', inForce: true } });
  t.match(served.said.join(''), /"revision":1,"caller":"controller:c1","msg":"policies are pushed"/);
  const host = clientWith(agentCredentials(enrolHost(ca), identity.hostId, good));
  t.match(await refusal(set(host, 2, gold)), /^UNAVAILABLE/);
  t.match(await get(controller), { policies: { revision: 1n } });
  // Root on the host and the controller are in one order.
  t.match(await remove(served.client(), 2), { changed: true });
  t.equal(await refusal(set(controller, 2, gold)), 'FAILED_PRECONDITION POLICIES_REVISION_REUSED');
  // As programs by the libraries of other languages, which compare the name that is called and know no other check.
  const { authorities, key, certificate } = ca.controllerMaterial();
  const plain = (name: string): AgentClient =>
    new AgentClient(
      `127.0.0.1:${access.port}`,
      credentials.createSsl(Buffer.from(authorities), Buffer.from(key), Buffer.from(certificate)),
      { 'grpc.ssl_target_name_override': name, 'grpc.use_local_subchannel_pool': 1 },
    );
  const other = plain(identity.hostId);
  t.match(await get(other), { policies: { revision: 2n } });
  const wrong = plain('another-host');
  t.match(await refusal(get(wrong)), /^UNAVAILABLE/);
  other.close();
  wrong.close();
  controller.close();
  host.close();
});

void t.test('after a restart what was pushed is there, and older revisions are still refused', async (t) => {
  await using served = await pushable();
  await set(served.client(), 5, gold);
  await served.stop();
  await served.start();
  follow(served);
  const client = served.client();
  t.match(await get(client), { policies: { revision: 5n, document: JSON.stringify(gold) } });
  t.equal(await refusal(set(client, 4, {})), 'FAILED_PRECONDITION POLICIES_OUTDATED');
});
