import { readFile, stat } from 'node:fs/promises';

import t from 'tap';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { readImageInfo, setBackingHeader } from '../../common/qemuImage.ts';
import { readGuestSequences } from './images.ts';
import { backUp, correctedDefinition, refusedWith, saveAndSwap, stage, untilEvent } from './stage.ts';

void t.test(
  'trap 2: a merged image that was not flushed is empty after a crash, until its base is put back',
  async (t) => {
    for (const crash of ['killQemu', 'crashHost'] as const) {
      const on = await stage(t);
      await backUp(on);
      await on.agent.pull(on.uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
      await untilEvent(on, 'block-job vda completed');
      await on.world[crash]('m');
      t.equal((await readImageInfo(on.image, 'qcow2')).backing, null, crash);
      t.same(await readGuestSequences(on.image), []);
      await setBackingHeader(on.image, { path: on.frozen, format: 'qcow2' });
      t.same(await readGuestSequences(on.image), [1, 2]);
    }
  },
);

void t.test('a save whose agent dies goes on alone', async (t) => {
  const on = await stage(t);
  const gate = on.world.hold('save:part');
  const definition = await correctedDefinition(on.agent, on.uuid);
  let returned = false;
  const saving = on.agent.save(on.uuid, { file: on.state, definition }).finally(() => {
    returned = true;
  });
  await gate.reached;
  on.agent.sever();
  const next = on.world.connect();
  t.same(await next.status(on.uuid), { state: 'paused', reason: 'saving' });
  t.equal((await next.job(on.uuid)).kind, 'unbounded');
  t.equal((await readFile(on.state)).toString('latin1', 0, 16), 'LibvirtQemudPart');
  await t.rejects(next.suspend(on.uuid), { code: 'MACHINE_LOCKED' });
  gate.release();
  while ((await next.status(on.uuid)).state !== 'shut-off')
    await new Promise((resolve) => setImmediate(resolve));
  t.same(await next.status(on.uuid), { state: 'shut-off', reason: 'saved' });
  t.equal((await readFile(on.state)).toString('latin1', 0, 16), 'LibvirtQemudSave');
  t.equal(returned, false, 'the dead agent never hears of it');
  t.ok(saving);
  t.same(on.events, ['suspended 0'], 'nor of events');
});

void t.test('what is left when something dies in the middle of a save', async (t) => {
  for (const [kill, status, file, code] of [
    ['libvirtd', { state: 'running', reason: 'save-canceled' }, true, 'HYPERVISOR_UNREACHABLE'],
    ['qemu', { state: 'shut-off', reason: 'crashed' }, false, 'OPERATION_FAILED'],
    ['abort', { state: 'running', reason: 'save-canceled' }, false, 'OPERATION_ABORTED'],
  ] as const) {
    const on = await stage(t);
    const gate = on.world.hold('save:memory');
    const definition = await correctedDefinition(on.agent, on.uuid);
    const saving = t.rejects(on.agent.save(on.uuid, { file: on.state, definition }), { code }, kill);
    await gate.reached;
    if (kill === 'libvirtd') await on.world.restartLibvirtd();
    else if (kill === 'qemu') await on.world.killQemu('m');
    else await on.agent.abortJob(on.uuid);
    await saving;
    t.same(await on.agent.status(on.uuid), status, kill);
    const left = await stat(on.state).then(
      () => true,
      () => false,
    );
    t.equal(left, file, `${kill}: state file`);
    if (status.state === 'running') await on.world.write('m', 'vda', 3);
  }
});

void t.test(
  'what is left when something dies in the middle of a restore, and a second restore works',
  async (t) => {
    for (const kill of ['libvirtd', 'qemu'] as const) {
      const on = await stage(t);
      await saveAndSwap(on, await correctedDefinition(on.agent, on.uuid));
      const gate = on.world.hold('restore:starting');
      const restoring = t.rejects(on.agent.restoreState({ file: on.state, paused: true }));
      await gate.reached;
      t.same(await on.agent.status(on.uuid), { state: 'paused', reason: 'starting-up' });
      if (kill === 'libvirtd') await on.world.restartLibvirtd();
      else await on.world.killQemu('m');
      await restoring;
      const reason = kill === 'libvirtd' ? 'daemon' : 'failed';
      t.same(await on.agent.status(on.uuid), { state: 'shut-off', reason });
      gate.release();
      await on.agent.restoreState({ file: on.state, paused: true });
      t.same(await on.agent.status(on.uuid), { state: 'paused', reason: 'migrating' });
      t.equal(on.world.memorySequence('m'), 2);
      await on.agent.powerOff(on.uuid);
      await on.agent.restoreState({ file: on.state, paused: false });
      t.same(
        await on.agent.status(on.uuid),
        { state: 'running', reason: 'restored' },
        'a second time is not refused',
      );
    }
  },
);

void t.test('a pull outlives libvirtd, and its event is lost when it ends meanwhile', async (t) => {
  const on = await stage(t);
  await backUp(on);
  const gate = on.world.hold('pull:copied');
  await on.agent.pull(on.uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
  await gate.reached;
  t.match(await on.agent.blockJob(on.uuid, 'vda'), { kind: 'pull' });
  const pull = { target: 'vda', bandwidthBytesPerSecond: 0 };
  await t.rejects(on.agent.pull(on.uuid, pull), { code: 'OPERATION_UNSUPPORTED' });
  const definition = await correctedDefinition(on.agent, on.uuid);
  await t.rejects(on.agent.save(on.uuid, { file: `${on.state}2`, definition }), {
    code: 'MACHINE_STATE_INVALID',
  });
  const job = on.world.machine('m').instance?.blockJobs.get('vda');
  await on.world.killLibvirtd();
  await t.rejects(on.agent.status(on.uuid), { code: 'HYPERVISOR_UNREACHABLE' });
  gate.release();
  await job?.done;
  on.world.startLibvirtd();
  t.equal(on.events.at(-1), 'reconnected');
  t.notOk(on.events.includes('block-job vda completed'));
  t.equal(await on.agent.blockJob(on.uuid, 'vda'), null);
  t.same(DomainXml.parse(await on.agent.definition(on.uuid, 'live')).liveChain('vda'), [on.image]);
});

void t.test(
  'a pull that is aborted or whose QEMU dies leaves the chain; a pull without a base is instant',
  async (t) => {
    for (const how of ['abort', 'kill'] as const) {
      const on = await stage(t);
      await backUp(on);
      const gate = on.world.hold('pull:half');
      await on.agent.pull(on.uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
      await gate.reached;
      if (how === 'abort') await on.agent.abortBlockJob(on.uuid, 'vda');
      else await on.world.killQemu('m');
      t.equal(on.events.includes('block-job vda canceled'), how === 'abort');
      t.equal((await readImageInfo(on.image, 'qcow2', { inUse: true })).backing?.path, on.frozen);
      t.same(await readGuestSequences(on.image), [1, 2]);
    }
    const on = await stage(t);
    await on.agent.pull(on.uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
    await untilEvent(on, 'block-job vda completed');
    const wrong = { target: 'vda', base: '/nowhere', bandwidthBytesPerSecond: 0 };
    await refusedWith(t, on.agent.pull(on.uuid, wrong), 'OPERATION_FAILED', 8);
  },
);

void t.test('after a restart libvirtd has forgotten why a machine is off', async (t) => {
  const on = await stage(t);
  await on.agent.save(on.uuid, { file: on.state, definition: await correctedDefinition(on.agent, on.uuid) });
  t.same(await on.agent.status(on.uuid), { state: 'shut-off', reason: 'saved' });
  await on.world.restartLibvirtd();
  t.same(await on.agent.status(on.uuid), { state: 'shut-off', reason: 'unknown' });
});

void t.test('after a crash of the host what has autostart is booted cold', async (t) => {
  const on = await stage(t);
  await on.agent.setAutostart(on.uuid, true);
  await on.world.crashHost();
  await on.world.bootHost();
  const agent = on.world.connect();
  t.same(await agent.status(on.uuid), { state: 'running', reason: 'booted' });
  t.equal(on.world.memorySequence('m'), 0);
  t.same(await on.world.readVolume('m', 'vda'), [1, 2]);
});
