import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import t from 'tap';
import { createImage, readGuestSequences } from '../../test/sim/images.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { BandwidthLimit } from '../../common/bandwidth.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { JobRow } from '../jobs/job.ts';
import { streamVolumes } from '../merge/stream.ts';
import { backupFactsSchema } from './facts.ts';

/* What the owner does to the images of his machine while a backup of it is made must not trap him. */

t.teardown(removeSharedImages);

/** The owner takes an external snapshot: the machine runs on an image of his. */
async function snapshot(site: Site): Promise<string> {
  const overlay = join(site.directory, 'images', 'owner.qcow2');
  const hypervisor = site.world.connect();
  const { path } = DomainXml.parse(await hypervisor.definition(site.uuid, 'live')).volume('vda');
  await createImage(overlay, { format: 'qcow2', sizeBytes: 1024 * 1024, backing: path });
  const memoryFile = join(site.directory, 'owner.state');
  await hypervisor.snapshotLive(site.uuid, { memoryFile, overlays: [{ target: 'vda', overlay }] });
  return overlay;
}

/** `virsh blockcommit --active --pivot`: without a base it goes down to the last image of the chain. */
async function commitTo(site: Site, top: string, base: string): Promise<void> {
  const hypervisor = site.world.connect();
  await hypervisor.commit(site.uuid, { target: 'vda', top, base, bandwidthBytesPerSecond: 0 });
  await eventually(async () => (await hypervisor.blockJob(site.uuid, 'vda'))?.ready === true);
  await hypervisor.pivot(site.uuid, 'vda');
}

/** A backup of the machine in mode `save`, in whose window the owner acts; the agent may die of it. */
async function backUp(site: Site, owner: () => Promise<void>, dies: boolean): Promise<JobRow> {
  let acted = false;
  const living = site.openAgent(async (moment, self) => {
    if (moment !== 'backup/after:resume' || acted) return;
    acted = true;
    await site.write();
    await owner();
    await site.write();
    if (dies) self.life.die();
  });
  const row = await living.life.live(async () =>
    living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'save' })),
  );
  if (row !== undefined) return row;
  site.buryOwners();
  const [recovered] = (await site.recover()).rows;
  if (recovered === undefined) throw new Error('nothing was recovered');
  return recovered;
}

/** Everything that the guest has written is there, in the running machine and for its next start. */
async function requireWhole(site: Site): Promise<void> {
  await site.write();
  const wanted = String(site.expected('vda', site.lastSequence));
  const running = String(await site.world.readVolume('m', 'vda'));
  if (running !== wanted) throw new Error(`the guest reads ${running} instead of ${wanted}`);
  const { path = '' } = DomainXml.parse(site.world.machine('m').persistent ?? '').volume('vda');
  const next = String(await readGuestSequences(path));
  if (next !== wanted) throw new Error(`its next start finds ${next} in ${path} instead of ${wanted}`);
}

for (const dies of [false, true]) {
  const how = dies ? ', and the agent dies' : '';
  void t.test(
    `a snapshot that he commits into the frozen image ends the backup, and nothing else${how}`,
    async (t) => {
      await using site = await Site.create({ targets: ['vda'], autostart: true });
      const row = await backUp(
        site,
        async () => {
          const overlay = await snapshot(site);
          const [, image] = [overlay, site.image('vda')];
          const frozen = DomainXml.parse(await site.world.connect().definition(site.uuid, 'live'))
            .volume('vda')
            .backingChain?.find(({ path }) => path !== image)?.path;
          await commitTo(site, overlay, frozen ?? '');
        },
        dies,
      );
      t.match(row, {
        state: 'failed',
        holdsMachine: false,
        error: {
          code: 'MACHINE_INTERFERED',
          message: /left where they are: .*vda\.frozen/,
          hint: /virsh edit/,
        },
      });
      t.match(site.world.machine('m'), { status: { state: 'running' }, autostart: true });
      await requireWhole(site);
      const { path = '' } = DomainXml.parse(site.world.machine('m').persistent ?? '').volume('vda');
      t.same(await readdir(dirname(path)), ['vda.frozen'], 'of the job only what is in use is left');
      const { agent } = site.openAgent();
      const next = await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' }));
      t.equal(next.state, 'finished', 'he can back his machine up');
    },
  );

  void t.test(`a snapshot that he keeps stays whole, with all that is below it${how}`, async (t) => {
    await using site = await Site.create({ targets: ['vda'], autostart: true });
    let overlay = '';
    const row = await backUp(
      site,
      async () => {
        overlay = await snapshot(site);
      },
      dies,
    );
    t.match(row, { holdsMachine: false });
    const { plan } = backupFactsSchema.parse(row.record);
    if (plan === undefined) throw new Error('the job has no plan');
    const pull = { includeSharedBase: false, limit: new BandwidthLimit(), deadlineMs: 60_000 };
    await t.rejects(
      streamVolumes(site.world.connect(), plan, pull),
      { code: 'CANNOT_MERGE_DISK_IMAGES', message: overlay, hint: /blockcommit m vda/ },
      'nothing would be pulled into what he put on top, should he do it while another volume is merged',
    );
    t.match(site.world.machine('m'), { status: { state: 'running' }, autostart: true });
    await requireWhole(site);
    const below = String(await readGuestSequences(site.image('vda')));
    t.ok(below !== '', 'what he has snapshotted can be read');
  });
}

void t.test(
  'a merge whose end libvirt has missed is not begun again into an image that he put on top',
  async (t) => {
    await using site = await Site.create({ targets: ['vda'] });
    const { agent } = site.openAgent();
    const gate = site.world.hold('pull:dismissed');
    const running = agent.run(await agent.createBackup({ machine: 'm', mode: 'save' }));
    await gate.reached;
    await site.world.restartLibvirtd();
    const overlay = await snapshot(site);
    gate.release();
    t.match(await running, { error: { code: 'CANNOT_MERGE_DISK_IMAGES', message: overlay } });
    t.match((await readImageInfo(overlay, 'qcow2', { inUse: true })).backing, { path: site.image('vda') });
    await requireWhole(site);
  },
);

void t.test('undefine while a machine is read ends nothing: it runs on as a transient one', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  const living = site.openAgent(async (moment) => {
    if (moment === 'backup/before:retain') await site.world.connect().undefine(site.uuid);
  });
  const row = await living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'disk' }));
  t.match(row, { state: 'finished', holdsMachine: false, error: null });
  t.equal(site.world.machine('m').status.state, 'running');
});

for (const mode of ['disk', 'save', 'live'] as const) {
  void t.test(
    `a machine that he powers off before any step of mode ${mode} stays off, whole, and is not held`,
    async (t) => {
      const points: string[] = [];
      await using plain = await Site.create({ targets: ['vda'] });
      const recorder = plain.openAgent(
        (moment) => void (moment.startsWith('backup/') && points.push(moment)),
      );
      await recorder.agent.run(await recorder.agent.createBackup({ machine: 'm', mode }));
      // Between two steps nothing happens: before each of them is enough.
      for (const point of new Set(points.filter((one) => one.includes('/before:')))) {
        await using site = await Site.create({ targets: ['vda'] });
        let powered = false;
        const { agent } = site.openAgent(async (moment) => {
          const { status } = site.world.machine('m');
          // While we bring it back its owner sees a machine that is being restored.
          if (moment !== point || powered || status.state !== 'running') return;
          powered = true;
          await site.world.connect().powerOff(site.uuid);
        });
        const row = await agent.run(await agent.createBackup({ machine: 'm', mode }));
        if (!powered) continue;
        t.equal(row.holdsMachine, false, `${point}: ${row.state} ${row.error?.message}`);
        t.match(site.world.machine('m').status, { state: 'shut-off', reason: 'destroyed' }, point);
        await site.world.startMachine('m');
        await requireWhole(site);
      }
    },
  );
}
