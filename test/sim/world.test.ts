import { readFile, rename, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import t from 'tap';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { HypervisorError } from '../../agent/hypervisor/errors.ts';
import { readImageInfo, setBackingHeader } from '../../common/qemuImage.ts';
import { readGuestSequences } from './images.ts';
import { backUp, correctedDefinition, refusedWith, saveAndSwap, stage, untilEvent } from './stage.ts';

void t.test('the classic flow ends with all data in one standalone image, and T1 frozen', async (t) => {
  const on = await stage(t);
  const { world, agent, uuid, image, frozen } = on;
  const startMs = performance.now();
  await backUp(on);
  t.same(DomainXml.parse(await agent.definition(uuid, 'live')).liveChain('vda'), [image, frozen]);
  t.equal(world.memorySequence('m'), 2, 'memory goes on');
  await agent.pull(uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
  await untilEvent(on, 'block-job vda completed');
  await agent.suspend(uuid);
  await agent.resume(uuid);
  t.comment(`backup without digests: ${Math.round(performance.now() - startMs)} ms`);
  await world.write('m', 'vda', 3);
  t.same(DomainXml.parse(await agent.definition(uuid, 'live')).liveChain('vda'), [image]);
  t.equal((await readImageInfo(image, 'qcow2')).backing, null);
  t.same(await readGuestSequences(image), [1, 2, 3]);
  t.same(await readGuestSequences(frozen), [1, 2]);
  t.same(on.events, [
    'suspended 0',
    'stopped 4',
    'started 2',
    'suspended 4',
    'resumed 0',
    'block-job vda completed',
    'suspended 0',
    'resumed 0',
  ]);
});

void t.test(
  'trap 1: a state saved with the definition as libvirt gives it restores a cut chain',
  async (t) => {
    const on = await stage(t);
    await saveAndSwap(on, await on.agent.definition(on.uuid, 'migratable'));
    await on.agent.restoreState({ file: on.state, paused: true });
    t.same(DomainXml.parse(await on.agent.definition(on.uuid, 'live')).liveChain('vda'), [on.image]);
    t.same((await readImageInfo(on.image, 'qcow2')).backing?.path, on.frozen, 'though the header is right');
    t.same(await on.world.readVolume('m', 'vda'), [], 'and the guest would read zeros');
  },
);

void t.test('a flush of the monitor or of the guest makes a merge safe as well', async (t) => {
  for (const how of ['flushVolume', 'write'] as const) {
    const on = await stage(t);
    await backUp(on);
    await on.agent.pull(on.uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
    await untilEvent(on, 'block-job vda completed');
    if (how === 'write') await on.world.write('m', 'vda', 3);
    else await on.agent.flushVolume(on.uuid, 'vda');
    await on.world.killQemu('m');
    t.same(await readGuestSequences(on.image), how === 'write' ? [1, 2, 3] : [1, 2], how);
    t.same(await on.agent.status(on.uuid), { state: 'shut-off', reason: 'crashed' });
  }
});

void t.test('trap 4: a full file system fails the pull, and pauses the guest when it writes', async (t) => {
  const on = await stage(t);
  await backUp(on);
  on.world.fillTarget('m', 'vda');
  await on.agent.pull(on.uuid, { target: 'vda', bandwidthBytesPerSecond: 0 });
  await untilEvent(on, 'block-job vda failed');
  t.equal((await on.agent.status(on.uuid)).state, 'running', 'an idle guest runs on');
  t.equal(await on.agent.blockJob(on.uuid, 'vda'), null);
  await on.world.write('m', 'vda', 3);
  t.same(await on.agent.status(on.uuid), { state: 'paused', reason: 'io-error' });
  t.same(on.events.slice(-2), ['io-error', 'suspended 2']);
  on.world.freeTarget('m', 'vda');
  await on.agent.resume(on.uuid);
  await on.world.write('m', 'vda', 3);
  t.same(await on.world.readVolume('m', 'vda'), [1, 2, 3]);
});

void t.test('a state that cannot be restored is refused with libvirt’s numbers', async (t) => {
  const on = await stage(t);
  const definition = await correctedDefinition(on.agent, on.uuid);
  await on.agent.save(on.uuid, { file: on.state, definition });
  const whole = await readFile(on.state);
  const attempt = async (content: Buffer | string, number: number): Promise<void> => {
    await writeFile(on.state, content);
    await refusedWith(t, on.agent.restoreState({ file: on.state, paused: true }), 'OPERATION_FAILED', number);
  };
  await attempt('LibvirtQemudSave', 9);
  await attempt(Buffer.from('LibvirtQemudPart'.padEnd(500)), 9);
  await attempt('x'.repeat(5000), 9);
  await attempt(whole.subarray(0, 300), 9);
  await attempt(whole.subarray(0, whole.length - 1), 1);
  t.same(await on.agent.status(on.uuid), { state: 'shut-off', reason: 'failed' });
  await writeFile(on.state, whole);
  const nowhere = on.agent.restoreState({ file: '/nowhere/state', paused: true });
  await refusedWith(t, nowhere, 'OPERATION_FAILED', 38);
  await rename(on.image, on.frozen);
  await refusedWith(t, on.agent.restoreState({ file: on.state, paused: true }), 'OPERATION_FAILED', 38);
  await rename(on.frozen, on.image);
  for (const [from, to] of [
    ['<name>m<', '<name>n<'],
    [on.uuid, '00000000-0000-4000-8000-000000000009'],
  ] as const) {
    const other = definition.replace(from, to);
    const refused = on.agent.restoreState({ file: on.state, definition: other, paused: true });
    await refusedWith(t, refused, 'DEFINITION_INVALID', 67);
  }
  t.equal(DomainXml.parse(await on.agent.stateDefinition(on.state)).uuid, on.uuid);
  await on.agent.restoreState({ file: on.state, paused: true });
  await t.rejects(on.agent.restoreState({ file: on.state, paused: true }), { code: 'MACHINE_STATE_INVALID' });
});

void t.test('a save refuses a live definition and an existing file, and the machine runs on', async (t) => {
  const on = await stage(t);
  const live = await on.agent.definition(on.uuid, 'live');
  await t.rejects(on.agent.save(on.uuid, { file: on.state, definition: live }), {
    code: 'DEFINITION_INVALID',
  });
  t.same(await on.agent.status(on.uuid), { state: 'running', reason: 'save-canceled' });
  await writeFile(on.state, 'precious');
  const definition = await correctedDefinition(on.agent, on.uuid);
  await t.rejects(on.agent.save(on.uuid, { file: on.state, definition }), { code: 'OPERATION_FAILED' });
  t.equal(await readFile(on.state, 'utf8'), 'precious');
  await truncate(on.state);
});

void t.test('a shared template below the chain stays out of a pull with a base', async (t) => {
  const on = await stage(t);
  const path = join(on.world.directory, 'n.qcow2');
  await on.agent.powerOff(on.uuid);
  const uuid = await on.world.addMachine({
    name: 'n',
    volumes: [{ target: 'vda', path, backing: on.image }],
  });
  await on.world.startMachine('n');
  await on.world.write('n', 'vda', 7);
  const other = { ...on, uuid, image: path, frozen: `${path}.frozen` };
  await backUp(other);
  await on.agent.pull(uuid, { target: 'vda', base: on.image, bandwidthBytesPerSecond: 0 });
  await untilEvent(on, 'block-job vda completed');
  t.same(DomainXml.parse(await on.agent.definition(uuid, 'live')).liveChain('vda'), [path, on.image]);
  await on.world.killQemu('n');
  t.same(await readGuestSequences(path), [1, 2], 'trap 2 above a template: what the pull copied is gone');
  await setBackingHeader(path, { path: other.frozen, format: 'qcow2' });
  t.same(await readGuestSequences(path), [1, 2, 7]);
});

void t.test(
  'a machine that is not defined any more is transient when restored, and gone when off',
  async (t) => {
    const on = await stage(t);
    await on.agent.undefine(on.uuid);
    t.equal((await on.agent.machine(on.uuid)).persistent, false, 'undefined while it runs');
    await t.rejects(on.agent.setAutostart(on.uuid, true), { code: 'MACHINE_STATE_INVALID' });
    await on.agent.save(on.uuid, {
      file: on.state,
      definition: await correctedDefinition(on.agent, on.uuid),
    });
    await t.rejects(on.agent.machine(on.uuid), { code: 'MACHINE_NOT_FOUND' });
    await on.agent.restoreState({ file: on.state, paused: false });
    t.match(await on.agent.machine(on.uuid), { persistent: false, status: { state: 'running' } });
    await on.agent.define(await on.agent.definition(on.uuid, 'persistent'));
    t.equal((await on.agent.machine(on.uuid)).persistent, true);
  },
);

void t.test(
  'operations can be made to fail before or after their effect, to be late, and to hang',
  async (t) => {
    const on = await stage(t);
    const error = new HypervisorError('MACHINE_LOCKED', 'injected');
    on.world.failNext('suspend', error);
    await t.rejects(on.agent.suspend(on.uuid), error);
    t.equal((await on.agent.status(on.uuid)).state, 'running');
    on.world.failNext('suspend', error, 'after');
    await t.rejects(on.agent.suspend(on.uuid), error);
    t.equal((await on.agent.status(on.uuid)).state, 'paused');
    on.world.hold('save:part');
    const definition = await correctedDefinition(on.agent, on.uuid);
    const late = on.agent.save(on.uuid, { file: on.state, definition, deadlineMs: 20 });
    await t.rejects(late, { code: 'DEADLINE_EXCEEDED' });
    await on.agent.abortJob(on.uuid);
    const controller = new AbortController();
    const gate = on.world.hold('save:part');
    const cancelled = on.agent.save(on.uuid, { file: on.state, definition, signal: controller.signal });
    await gate.reached;
    controller.abort();
    await t.rejects(cancelled, { code: 'OPERATION_ABORTED' });
    t.same(await on.agent.status(on.uuid), { state: 'paused', reason: 'user' }, 'as its owner left it');
  },
);
