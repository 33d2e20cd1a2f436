import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { createLogger } from '../../common/log.ts';
import { parseConfig } from '../../config/config.ts';
import { withPushed } from '../../config/hostConfig.ts';
import { PushedFile } from '../../config/pushedFile.ts';
import type { Caller } from './caller.ts';
import { requireRight } from './policyCalls.ts';
import { PushedPolicies, type PushTarget } from './pushedPolicies.ts';

const controller: Caller = { kind: 'controller', name: 'c1' };
const gold = JSON.stringify({ policies: { gold: {} } });
const silver = JSON.stringify({ policies: { silver: {} } });

/** A host to which policies can be pushed, with a service that follows what is kept. */
async function host(t: Test, more = '') {
  const stateDir = t.testdir({});
  const text = `agent: { stateDir: ${stateDir} }\nstorages: { local: { kind: directory, path: /l } }\n${more}`;
  const file = new PushedFile(stateDir);
  const start = async () => {
    const local = parseConfig(text, '/c.yaml');
    const follow = async () => {
      agent.parts = {
        ...withPushed(local, await file.read(), agent.parts.pushed?.kept),
        configPath: '/c.yaml',
      };
    };
    const agent: { parts: PushTarget['parts'] } = { parts: { ...local, configPath: '/c.yaml' } };
    const pushed = new PushedPolicies({ agent, log: createLogger({ level: 'silent' }) });
    await pushed.open();
    await follow();
    pushed.follow = follow;
    return { agent, pushed };
  };
  return { file, start, ...(await start()) };
}

function push(revision: number, document: string, validateOnly = false) {
  return { revision, document, validateOnly };
}

void t.test('later revisions replace earlier ones, and earlier ones change nothing', async (t) => {
  const { pushed, agent, file } = await host(t);
  t.same(await pushed.view(), { kept: null, inForce: false, problems: [] });
  t.ok(await pushed.set(push(5, gold), controller));
  t.match(await pushed.view(), {
    kept: { revision: 5, document: gold, setBy: 'controller:c1' },
    inForce: true,
    problems: [],
  });
  t.ok(agent.parts.config.policies['gold@controller']);
  const before = await file.read();
  t.notOk(await pushed.set(push(5, gold), controller), 'the same again');
  await t.rejects(pushed.set(push(4, silver), controller), {
    code: 'POLICIES_OUTDATED',
    message: /revision 5 is in force, set by controller:c1 at .*; revision 4 is older/,
    hint: /revision 6 or a greater one/,
  });
  await t.rejects(pushed.set(push(5, silver), controller), { code: 'POLICIES_REVISION_REUSED' });
  await t.rejects(pushed.remove(5, controller), { code: 'POLICIES_REVISION_REUSED' });
  await t.rejects(pushed.set(push(6, '{"policies":{"a":{"mode":1}}}'), controller), {
    code: 'POLICIES_INVALID',
  });
  t.notOk(await pushed.set(push(6, silver, true), controller), 'only validated');
  t.same(await file.read(), before);
  t.ok(await pushed.set(push(6, silver), controller));
  t.notOk(agent.parts.config.policies['gold@controller'], 'all of it at once');
});

void t.test('what comes after a removal and was meant before it is refused', async (t) => {
  const { pushed, agent, start } = await host(t);
  await pushed.set(push(1, gold), controller);
  t.ok(await pushed.remove(3, { kind: 'socket', name: 'uid 0', isPrivileged: true }));
  t.match(await pushed.view(), {
    kept: { revision: 3, document: null, setBy: 'socket:uid 0' },
    inForce: false,
  });
  t.notOk(agent.parts.config.policies['gold@controller']);
  t.notOk(await pushed.remove(3, controller), 'the same again');
  await t.rejects(pushed.set(push(2, silver), controller), { code: 'POLICIES_OUTDATED' });
  const { pushed: later } = await start();
  await t.rejects(
    later.set(push(2, silver), controller),
    { code: 'POLICIES_OUTDATED' },
    'after a restart, too',
  );
  t.ok(await later.set(push(4, silver), controller));
});

void t.test('of pushes at the same time the latest is in force, in whatever order they come', async (t) => {
  const { pushed, agent } = await host(t);
  const revisions = [3, 9, 1, 7, 8, 2];
  const document = (revision: number) => JSON.stringify({ policies: { [`r${revision}`]: {} } });
  const ends = await Promise.allSettled(
    revisions.map((revision) => pushed.set(push(revision, document(revision)), controller)),
  );
  t.same(
    ends.map(({ status }) => status),
    ['fulfilled', 'fulfilled', 'rejected', 'rejected', 'rejected', 'rejected'],
  );
  t.ok(agent.parts.config.policies['r9@controller']);
  t.match(await pushed.view(), { kept: { revision: 9 }, inForce: true });
});

void t.test('a file that is damaged while the service runs is made good by the same push', async (t) => {
  const { pushed, file } = await host(t);
  await pushed.set(push(5, gold), controller);
  await writeFile(file.path, 'damaged');
  await pushed.follow?.();
  t.match(await pushed.view(), { kept: { revision: 5 }, inForce: true, problems: [/damaged/] });
  await t.rejects(pushed.set(push(4, silver), controller), { code: 'POLICIES_OUTDATED' }, 'it is remembered');
  t.ok(await pushed.set(push(5, gold), controller));
  t.match(await file.read(), { kept: { revision: 5 }, problem: null });
  t.match(await pushed.view(), { inForce: true, problems: [] });
});

void t.test('after a start with a damaged file any revision makes it good', async (t) => {
  const { pushed, file, start } = await host(t);
  await pushed.set(push(5, gold), controller);
  await writeFile(file.path, 'damaged');
  const { pushed: later, agent } = await start();
  t.match(await later.view(), { kept: null, inForce: false, problems: [/damaged/] });
  t.match(agent.parts.config.machines, [{ match: '*', policy: 'default@stand-in' }]);
  t.ok(await later.set(push(2, silver), controller));
  t.match(await later.view(), { kept: { revision: 2 }, inForce: true, problems: [] });
});

void t.test('what cannot be written down is told, can be tried again, and changes nothing', async (t) => {
  const { pushed, file, agent } = await host(t);
  await pushed.set(push(1, gold), controller);
  await rm(file.directory, { recursive: true });
  await writeFile(file.directory, 'something in its place');
  await t.rejects(pushed.set(push(2, silver), controller), { code: 'POLICIES_NOT_KEPT', retryable: true });
  t.ok(agent.parts.config.policies['gold@controller']);
  await rm(file.directory);
  t.ok(await pushed.set(push(2, silver), controller));
  t.ok(agent.parts.config.policies['silver@controller']);
});

void t.test('a host that takes none says so, and can still be cleared', async (t) => {
  const { pushed } = await host(t, 'controller: { acceptPolicies: false }\n');
  await t.rejects(pushed.set(push(1, gold), controller), {
    code: 'POLICIES_NOT_ACCEPTED',
    hint: /acceptPolicies: true.* in \/c\.yaml/,
  });
  t.ok(await pushed.remove(2, controller));
});

void t.test('references are to what the host has now', async (t) => {
  const { pushed } = await host(t, 'policies: { own: {} }\n');
  const rule = (policy: string) => JSON.stringify({ machines: [{ match: 'x', policy }] });
  await pushed.set(push(1, gold), controller);
  await t.rejects(pushed.set(push(2, rule('gold')), controller), {
    code: 'POLICIES_INVALID',
    message: /machines\.0\.policy: no policy is called gold; there is default, own$/,
  });
  const ofItsOwn = { policies: { default: {} }, machines: [{ match: 'x', policy: 'gold' }] };
  await t.rejects(pushed.set(push(2, JSON.stringify(ofItsOwn)), controller), {
    message: /no policy is called gold; there is default, own$/,
  });
  t.ok(await pushed.set(push(2, rule('own')), controller));
});

void t.test('only the controller, and who may do whatever the service may, changes policies', async (t) => {
  const socket = { kind: 'socket', name: 'uid 1000' } as const;
  requireRight(controller);
  requireRight({ ...socket, isPrivileged: true });
  for (const caller of [socket, { ...socket, isPrivileged: false }])
    t.throws(() => requireRight(caller), { code: 'CALLER_DENIED', hint: /as root/ });
});

void t.test('what a killed process has left is taken away at the start', async (t) => {
  const { file, start, pushed } = await host(t);
  await pushed.set(push(1, gold), controller);
  const left = join(file.directory, '.pushed.json.0123456789abcdef.tmp');
  await writeFile(left, '{');
  await start();
  await t.rejects(rm(left), { code: 'ENOENT' });
  t.match(await file.read(), { kept: { revision: 1 } });
});

void t.test(
  'a controller that the host has left changes nothing, although its connection is still open',
  async (t) => {
    const { file, agent } = await host(t);
    let joined = true;
    const isJoined = () => Promise.resolve(joined);
    const pushed = new PushedPolicies({ agent, log: createLogger({ level: 'silent' }), isJoined });
    await pushed.set(push(1, gold), controller);
    joined = false;
    await t.rejects(pushed.set(push(2, silver), controller), { code: 'CALLER_DENIED', message: /has left/ });
    await t.rejects(pushed.remove(2, controller), { code: 'CALLER_DENIED' });
    t.match(await file.read(), { kept: { revision: 1 } });
    t.ok(
      await pushed.set(push(2, silver), { kind: 'socket', name: 'uid 0', isPrivileged: true }),
      'root does as before',
    );
  },
);
