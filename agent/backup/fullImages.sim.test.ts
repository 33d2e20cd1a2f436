import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { removeSharedImages, Site } from '../../test/sim/site.ts';

/* A guest that stands still because the file system of its images is full, while a backup reads them. */

t.teardown(removeSharedImages);

void t.test('it is resumed when all that the backup had put beside its images is gone', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  const beside: (readonly string[])[] = [];
  const { agent, life } = site.openAgent(async (moment) => {
    if (moment === 'libvirt/before:resume') beside.push(await readdir(join(site.directory, 'images')));
    if (moment !== 'backup/before:retain') return;
    t.ok((await readdir(join(site.directory, 'images'))).includes('.stillpoint'));
    site.world.machine('m').status = { state: 'paused', reason: 'io-error' };
    throw new Error('no space left on device');
  });
  const row = await life.live(async () =>
    agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })),
  );
  t.match(row, { state: 'failed', holdsMachine: false, error: { message: /no space/ } });
  t.same(beside, [['m-vda.qcow2']]);
  t.equal(site.world.machine('m').status.state, 'running');
});

void t.test(
  'while there is no room for it, its job waits with it, and lets it run on as soon as there is',
  async (t) => {
    await using site = await Site.create({ targets: ['vda'] });
    let isFull = true;
    const { agent, life } = site.openAgent((moment) => {
      if (moment === 'libvirt/after:resume' && isFull)
        site.world.machine('m').status = { state: 'paused', reason: 'io-error' };
      if (moment !== 'backup/before:retain') return;
      site.world.machine('m').status = { state: 'paused', reason: 'io-error' };
      throw new Error('no space left on device');
    });
    const row = await life.live(async () =>
      agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })),
    );
    t.match(row, {
      state: 'failed',
      holdsMachine: true,
      error: { code: 'GUEST_WITHOUT_ROOM', hint: /virsh resume m/ },
    });
    isFull = false;
    const rows = await life.live(() => agent.retryParked());
    t.match(rows, [{ state: 'failed', holdsMachine: false, error: { message: /no space/ } }]);
    t.equal(site.world.machine('m').status.state, 'running');
  },
);

void t.test('a job that was cancelled waits with its guest, too', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  let isFull = true;
  const { agent, life } = site.openAgent((moment, { journal }) => {
    if (moment === 'libvirt/after:resume' && isFull)
      site.world.machine('m').status = { state: 'paused', reason: 'io-error' };
    if (moment !== 'backup/after:begin') return;
    site.world.machine('m').status = { state: 'paused', reason: 'io-error' };
    for (const { id } of journal.holding()) journal.requestCancel(id);
  });
  const row = await life.live(async () =>
    agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })),
  );
  t.match(row, { holdsMachine: true, error: { code: 'GUEST_WITHOUT_ROOM' } });
  t.match(await life.live(() => agent.retryParked()), [{ holdsMachine: true }], 'it is not let alone');
  isFull = false;
  t.match(await life.live(() => agent.retryParked()), [{ state: 'cancelled', holdsMachine: false }]);
  t.equal(site.world.machine('m').status.state, 'running');
});

void t.test('who cancels a job that waits takes the guest into his own hands', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  const { agent, life } = site.openAgent((moment) => {
    if (moment !== 'libvirt/after:resume' && moment !== 'backup/before:retain') return;
    site.world.machine('m').status = { state: 'paused', reason: 'io-error' };
    if (moment === 'backup/before:retain') throw new Error('no space left on device');
  });
  const row = await life.live(async () =>
    agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })),
  );
  t.match(row, { holdsMachine: true, error: { code: 'GUEST_WITHOUT_ROOM' } });
  t.match(await life.live(() => agent.cancel(row?.id ?? '')), { state: 'cancelled', holdsMachine: false });
});
