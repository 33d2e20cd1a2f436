import { rm } from 'node:fs/promises';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { readImageInfo } from '../../common/qemuImage.ts';
import { endure, Fate } from '../../test/sim/crashes.ts';
import { removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';

/* What was lost once, or nearly. Each of these failed before its cure. */

t.teardown(removeSharedImages);

async function siteFor(test: Test, options: SiteOptions = {}): Promise<Site> {
  const site = await Site.create(options);
  test.teardown(() => site[Symbol.asyncDispose]());
  return site;
}

void t.test('a machine whose QEMU dies after the swap is brought up again by the job itself', async (t) => {
  for (const moment of [
    'backup/after:resume',
    'backup/after:merge',
    'backup/after:flush',
    'backup/before:unguard',
  ]) {
    const site = await siteFor(t, { autostart: true });
    const { problems, row } = await endure(site, 'backup', [{ moment, victim: 'qemu' }]);
    t.same(problems, [], moment);
    t.equal(site.world.machine('m').status.state, 'running', moment);
    t.equal(row?.state, 'finished', moment);
  }
});

void t.test('a host that crashes before the guard is lifted starts its machine all the same', async (t) => {
  const site = await siteFor(t, { autostart: true });
  const { problems } = await endure(site, 'backup', [{ moment: 'backup/before:unguard', victim: 'host' }]);
  t.same(problems, []);
  t.match(site.world.machine('m'), { autostart: true, status: { state: 'running' } });
});

void t.test('a memory state that went with the RAM disk ends the job, and does not park it', async (t) => {
  const site = await siteFor(t, { autostart: true, ramDisk: true });
  const { problems, row } = await endure(site, 'backup', [{ moment: 'backup/before:stow', victim: 'host' }]);
  t.same(problems, []);
  t.match(row, { state: 'failed', holdsMachine: false, error: { code: 'MACHINE_INTERFERED' } });
});

void t.test('a point in time outlives its host as soon as its memory has left the RAM disk', async (t) => {
  for (const moment of ['backup/after:stow', 'backup/before:merge', 'backup/before:retain']) {
    const site = await siteFor(t, { autostart: true, ramDisk: true });
    const { problems, row } = await endure(site, 'backup', [{ moment, victim: 'host' }]);
    t.same(problems, [], moment);
    t.match(row, { state: 'finished' }, moment);
  }
});

void t.test('an image that was never swapped is not put under itself before libvirt starts', async (t) => {
  const site = await siteFor(t, { autostart: true });
  const crashes = [
    { moment: 'backup/before:save', victim: 'qemu' },
    { moment: 'backup/recover/after:start-cold', victim: 'host' },
  ] as const;
  // The recovery that starts the machine is that of the agent itself.
  const [first, second] = crashes;
  const fate = new Fate(site, second, async (moment) => {
    if (moment === first.moment) await site.world.killQemu('m');
  });
  const { problems, hit } = await endure(site, 'backup', [second], fate);
  t.ok(hit);
  t.same(problems, []);
  t.equal((await readImageInfo(site.image('vda'), 'qcow2', { inUse: true })).backing, null);
});

void t.test(
  'with one volume swapped and the machine run and stopped by its owner, the merge harms no image',
  async (t) => {
    const site = await siteFor(t);
    // The fourth rename of the job: the definition, the marker, the first volume, and not the second one.
    const fate = new Fate(site, { moment: 'file/rename', nth: 4, victim: 'agent' });
    const living = site.openAgent(fate.listen);
    await living.life.live(async () =>
      living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'save' })),
    );
    t.ok(living.life.isDead);
    await site.world.startMachine('m');
    await site.write();
    await site.world.shutDownGuest('m');
    site.buryOwners();
    const { rows } = await site.recover();
    t.match(rows, [{ state: 'failed', holdsMachine: false, error: { code: 'MACHINE_INTERFERED' } }]);
    t.match(
      site.world.machine('m').status,
      { state: 'shut-off', reason: 'shutdown' },
      'it stays as its owner left it',
    );
    await site.world.startMachine('m');
    for (const target of site.targets) {
      t.same(await site.world.readVolume('m', target), site.expected(target, site.lastSequence), target);
      t.equal((await readImageInfo(site.image(target), 'qcow2', { inUse: true })).backing, null, target);
    }
  },
);

void t.test(
  'a swap that cannot be finished is taken back, and the machine goes on with its memory',
  async (t) => {
    const site = await siteFor(t);
    const fate = new Fate(site, undefined, async (moment, { journal }) => {
      if (moment !== 'backup/before:swap') return;
      const [job] = journal.holding();
      await rm(join(site.directory, 'images', '.stillpoint', job?.id ?? '', 'vdb.overlay'));
    });
    const { problems, row } = await endure(site, 'backup', [], fate);
    t.same(problems, []);
    t.match(row, { state: 'failed', holdsMachine: false, error: { code: 'CANNOT_RENAME_DISK_IMAGE' } });
    t.ok(fate.points.includes('backup/recover/after:put-back'));
  },
);

void t.test('an undo that is killed while it removes files is finished by the next one', async (t) => {
  for (const nth of [1, 2, 3, 4]) {
    const site = await siteFor(t, { ramDisk: true });
    const crashes = [
      { moment: 'backup/after:guard', victim: 'agent' },
      { moment: 'file/*', nth, victim: 'agent' },
    ] as const;
    t.same((await endure(site, 'backup', crashes)).problems, [], `change ${nth}`);
  }
});

void t.test('a storage that does not answer fails the job; it does not keep the machine', async (t) => {
  const site = await siteFor(t);
  await rm(join(site.directory, 'near'), { recursive: true });
  const living = site.openAgent();
  const row = await living.life.live(async () =>
    living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'save' })),
  );
  t.match(row, { state: 'failed', holdsMachine: false, error: { code: 'STORAGE_UNREACHABLE' } });
});

void t.test(
  'a copy whose restore dies between the two names of an image is finished or undone',
  async (t) => {
    const site = await siteFor(t, { targets: ['vda'] });
    t.same((await endure(site, 'backup', [])).problems, []);
    for (const moment of ['restore/before:start', 'restore/after:start']) {
      const { problems, row } = await endure(site, 'new-machine', [{ moment, victim: 'agent' }]);
      t.same(problems, [], moment);
      t.equal(row?.state, 'finished', moment);
    }
    for (let nth = 1; nth < 12; nth += 1) {
      t.same(
        (await endure(site, 'new-machine', [{ moment: 'file/rm', nth, victim: 'agent' }])).problems,
        [],
        `removal ${nth}`,
      );
    }
  },
);

void t.test('a restore of files that dies leaves all of them, or none', async (t) => {
  const site = await siteFor(t, { targets: ['vda'] });
  t.same((await endure(site, 'backup', [])).problems, []);
  for (const moment of ['restore/after:swap', 'restore/before:cleanup']) {
    t.same((await endure(site, 'files', [{ moment, victim: 'agent' }])).problems, [], moment);
  }
  for (let nth = 1; nth < 12; nth += 1) {
    t.same(
      (await endure(site, 'files', [{ moment: 'file/link', nth, victim: 'agent' }])).problems,
      [],
      `link ${nth}`,
    );
  }
});

void t.test('a recovery waits for the start that a dead agent had asked for', async (t) => {
  for (const request of ['backup', 'in-place'] as const) {
    const site = await siteFor(t, { targets: ['vda'] });
    if (request === 'in-place') t.same((await endure(site, 'backup', [])).problems, []);
    const gate = site.world.hold('restore:starting');
    const fate = new Fate(site);
    const living = site.openAgent(fate.listen);
    const dying = living.life.live(async () => {
      const job =
        request === 'backup'
          ? await living.agent.createBackup({ machine: 'm', mode: 'save' })
          : living.agent.createRestore(await living.agent.planRestore({ backup: 'm@latest', inPlace: true }));
      await living.agent.run(job);
    });
    await gate.reached;
    living.life.die();
    await dying;
    site.buryOwners();
    const recovering = site.recover();
    setTimeout(() => gate.release(), 300);
    t.match((await recovering).rows, [{ state: 'finished', holdsMachine: false }], request);
    t.match(site.world.machine('m').status, { state: 'running' }, request);
    if (request === 'backup') t.equal(site.world.memorySequence('m'), site.lastSequence);
    else t.not(site.world.memorySequence('m'), 0, 'not booted');
  }
});

void t.test('a machine that dies while recovery looks at it is seen as it is then', async (t) => {
  const site = await siteFor(t, { targets: ['vda'] });
  const crashes = [
    { moment: 'backup/before:merge', victim: 'agent' },
    { moment: 'libvirt/before:definition', victim: 'qemu' },
  ] as const;
  const { problems } = await endure(site, 'backup', crashes);
  t.same(problems, []);
  t.equal(site.world.machine('m').status.state, 'running');
});
