import { spawn } from 'node:child_process';
import { once } from 'node:events';

import t from 'tap';

import { currentBootId, isOwnerAlive, ownerStartedMs, processStartTicks, thisOwner } from './owner.ts';

void t.test('a process is its own living owner', async (t) => {
  const owner = thisOwner();
  t.equal(owner.pid, process.pid);
  t.equal(isOwnerAlive(owner), true);
  t.equal(isOwnerAlive(structuredClone(owner)), true);
});

void t.test('a reused pid is not the owner', async (t) => {
  const owner = thisOwner();
  t.equal(isOwnerAlive({ ...owner, startTicks: owner.startTicks - 1 }), false);
  t.equal(isOwnerAlive({ ...owner, startTicks: owner.startTicks + 1 }), false);
});

void t.test('after a reboot nobody is the owner', async (t) => {
  t.match(currentBootId(), /^[0-9a-f-]{36}$/);
  t.equal(isOwnerAlive({ ...thisOwner(), bootId: '00000000-0000-4000-8000-000000000000' }), false);
});

void t.test('a process that has ended owns nothing, nor does its zombie', async (t) => {
  // The shell does not reap what it has started and replaced itself by sleep since: `true` stays a zombie.
  const parent = spawn('sh', ['-c', 'true & echo $!; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  t.teardown(() => parent.kill('SIGKILL'));
  const pid = Number(String((await once(parent.stdout, 'data'))[0]));
  const deadline = Date.now() + 5000;
  while (processStartTicks(pid) !== undefined && Date.now() < deadline)
    await new Promise((resolve) => setImmediate(resolve));
  t.equal(processStartTicks(pid), undefined, 'the zombie');
  const { pid: parentPid = 0 } = parent;
  const owner = { pid: parentPid, startTicks: processStartTicks(parentPid) ?? 0, bootId: currentBootId() };
  t.equal(isOwnerAlive(owner), true);
  parent.kill('SIGKILL');
  await once(parent, 'exit');
  t.equal(isOwnerAlive(owner), false);
});

void t.test('an owner was started when its process was', (t) => {
  const expected = Date.now() - process.uptime() * 1000;
  t.ok(Math.abs(ownerStartedMs(thisOwner()) - expected) < 2000);
  t.end();
});
