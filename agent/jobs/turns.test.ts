import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { newId } from '../../common/ids.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { type LivingAgent, removeSharedImages, Site } from '../../test/sim/site.ts';
import type { JobRow } from './job.ts';

t.teardown(removeSharedImages);

void t.test('a storage takes no more jobs at a time than it allows, of all commands together', async (t) => {
  await using site = await Site.create({ targets: ['vda'], storages: ['near', 'far'], storageMax: 1 });
  for (const name of ['n', 'o']) {
    const path = join(site.directory, 'images', `${name}-vda.qcow2`);
    await copyFile(site.image('vda'), path);
    await site.world.addMachine({ name, volumes: [{ target: 'vda', path, exists: true }] });
    await site.world.startMachine(name);
  }
  const held = Promise.withResolvers<void>();
  const reached = Promise.withResolvers<void>();
  const first = site.openAgent(async (moment) => {
    if (moment !== 'backup/before:retain') return;
    reached.resolve();
    await held.promise;
  });
  const run = async ({ agent }: LivingAgent, machine: string, storages: readonly string[]): Promise<JobRow> =>
    agent.run(await agent.createBackup({ machine, mode: 'disk', storages }));
  const running = run(first, 'm', ['near']);
  await reached.promise;

  const second = site.openAgent();
  t.equal((await run(second, 'n', ['far'])).state, 'finished', 'another storage is not concerned');
  const created = await second.agent.createBackup({ machine: 'n', mode: 'disk', storages: ['near'] });
  const waiting = second.agent.run(created);
  await eventually(() => second.journal.progress(created.id)?.step === 'waits');
  t.match(second.journal.progress(created.id)?.detail, 'near');
  t.same(second.journal.steps(created.id), [], 'nothing was begun');

  const cancelled = await second.agent.createBackup({ machine: 'o', mode: 'disk', storages: ['near'] });
  const giving = second.agent.run(cancelled);
  second.journal.requestCancel(cancelled.id);
  t.equal((await giving).state, 'cancelled', 'who is cancelled waits no longer');

  held.resolve();
  t.equal((await running).state, 'finished');
  t.equal((await waiting).state, 'finished', 'it goes on when there is a place');
});

void t.test('a job whose process died, or that is parked, takes no place', async (t) => {
  await using site = await Site.create({ targets: ['vda'], storageMax: 1 });
  const path = join(site.directory, 'images', 'n-vda.qcow2');
  await copyFile(site.image('vda'), path);
  await site.world.addMachine({ name: 'n', volumes: [{ target: 'vda', path, exists: true }] });
  await site.world.startMachine('n');
  const dying = site.openAgent((moment, self) => {
    if (moment === 'backup/before:retain') self.life.die();
  });
  await dying.life.live(async () =>
    dying.agent.run(await dying.agent.createBackup({ machine: 'm', mode: 'disk' })),
  );
  site.buryOwners();
  const { agent } = site.openAgent();
  t.equal((await agent.run(await agent.createBackup({ machine: 'n', mode: 'disk' }))).state, 'finished');
});

void t.test('what was written down between the members of a group comes after all of them', async (t) => {
  await using site = await Site.create({ targets: ['vda'], storageMax: 1 });
  for (const name of ['n', 'o']) {
    const path = join(site.directory, 'images', `${name}-vda.qcow2`);
    await copyFile(site.image('vda'), path);
    await site.world.addMachine({ name, volumes: [{ target: 'vda', path, exists: true }] });
    await site.world.startMachine(name);
  }
  const { agent } = site.openAgent();
  const group = { id: newId(), machines: ['m', 'n'] };
  const first = await agent.createBackup({ machine: 'm', mode: 'disk', group });
  const between = await agent.createBackup({ machine: 'o', mode: 'disk' });
  const second = await agent.createBackup({ machine: 'n', mode: 'disk', group });
  const waiting = agent.run(between);
  const ended = await agent.runTogether([first, second]);
  t.match(ended, [{ state: 'finished' }, { state: 'finished' }], 'the group does not wait for it');
  t.equal((await waiting).state, 'finished', 'nor for ever the other way round');
});
