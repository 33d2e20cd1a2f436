import { randomUUID } from 'node:crypto';
import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { isTemplate, templateUuid } from '../storage/template.ts';
import { OfflineWatch } from './snapshot/offlineWatch.ts';
import { planTemplate } from './snapshot/planTemplate.ts';
import { removeSharedImages, Site } from '../test/sim/site.ts';
import type { LivingAgent } from '../test/sim/site.ts';

t.teardown(removeSharedImages);

async function makeImage(path: string, format = 'qcow2'): Promise<string> {
  await execa('qemu-img', ['create', '-q', '-f', format, path, '4M']);
  await execa('qemu-io', ['-f', format, '-c', 'write -P 0x5a 1M 1M', path]);
  return path;
}

async function backUp({ agent }: LivingAgent, name: string, image: string): Promise<string | undefined> {
  const row = await agent.run(await agent.createBackup({ machine: name, template: { image } }));
  return row.error?.code;
}

async function restore({ agent }: LivingAgent, to?: string): Promise<void> {
  const plan = await agent.planRestore({ backup: 'base@latest', to });
  const row = await agent.run(agent.createRestore(plan));
  if (row.error !== null) throw new Error(row.error.message);
}

void t.test(
  'a template is stored without a machine, listed as one, verified, and restored as it was',
  async (t) => {
    await using site = await Site.create();
    for (const format of ['qcow2', 'raw']) {
      const living = site.openAgent();
      const { agent } = living;
      const image = await makeImage(join(site.directory, 'images', `base.${format}`), format);
      const before = await stat(image);
      t.equal(await backUp(living, 'base', image), undefined);
      t.equal((await stat(image)).mtimeMs, before.mtimeMs, 'it is only read');
      const entry = await agent.backups.find('base@latest');
      t.match(entry.manifest, {
        mode: 'offline',
        modeReason: 'a template: no machine runs it',
        consistency: 'offline',
        volumes: [{ target: 'vda', source: image, read: 'full' }],
      });
      t.ok(entry.manifest !== null && isTemplate(entry.manifest));
      t.ok((await agent.storage(entry.storage).verify(entry, { data: true })).ok);
      const whole = join(site.directory, `whole.${format}`);
      await execa('cp', [image, whole]);
      await t.rejects(agent.planRestore({ backup: 'base@latest' }), { code: 'PATH_TAKEN' });
      for (const how of [{ inPlace: true }, { start: 'boot' as const }, { networks: { lan: 'none' } }])
        await t.rejects(agent.planRestore({ backup: 'base@latest', ...how }), {
          code: 'RESTORE_TARGET_UNCLEAR',
        });
      await t.rejects(agent.planRestore({ backup: 'base@latest', as: 'new' }), {
        code: 'RESTORE_TARGET_UNCLEAR',
      });
      await restore(living, site.filesDirectory);
      await rm(image);
      await restore(living);
      for (const restored of [image, join(site.filesDirectory, `base.${format}`)]) {
        await execa('qemu-img', ['compare', '-f', format, '-F', format, whole, restored]);
        t.equal((await stat(restored)).mode, before.mode);
      }
      await agent.deleteBackup(entry);
      await rm(site.filesDirectory, { recursive: true });
    }
  },
);

void t.test(
  'the next backup of a template belongs to the same, another path or host to another',
  async (t) => {
    const about = { host: 'h', name: 'base', image: '/images/base.qcow2' };
    t.equal(templateUuid(about), templateUuid({ ...about }));
    t.match(templateUuid(about), /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    const others = [{ host: 'i' }, { name: 'other' }, { image: '/x' }].map((one) =>
      templateUuid({ ...about, ...one }),
    );
    t.equal(new Set([...others, templateUuid(about)]).size, 4);
  },
);

void t.test('a machine is no template, and an image that somebody writes to is refused', async (t) => {
  await using site = await Site.create();
  const living = site.openAgent();
  const image = await makeImage(join(site.directory, 'images', 'base.qcow2'));
  t.equal(await backUp(living, 'm-disk', site.image('vda')), 'MACHINE_RUNNING');
  await t.rejects(backUp(living, 'm', image), { code: 'TEMPLATE_NAME_TAKEN', hint: /--name/ });
  t.equal(await backUp(living, 'gone', '/no/such/image.qcow2'), 'MISSING_NECESSARY_FILES');
  const writer = execa('qemu-io', ['-f', 'qcow2', image]);
  try {
    writer.stdin.write('write 0 64k\n');
    for await (const line of writer) if (line.includes('wrote')) break;
    t.equal(await backUp(living, 'base', image), 'IMAGE_LOCKED');
  } finally {
    writer.stdin.end('quit\n');
    await writer.catch(() => undefined);
  }
  t.equal(await backUp(living, 'base', image), undefined, 'once it is gone');
});

void t.test('what changes while it is read is not kept', async (t) => {
  await using site = await Site.create();
  const image = await makeImage(join(site.directory, 'images', 'base.raw'), 'raw');
  const hypervisor = site.world.connect();
  const machine = { uuid: randomUUID(), name: 'base' };
  const request = { jobId: 'job', machine, image, modeReason: '', runDirectory: site.runDirectory };
  await using watch = await OfflineWatch.start(hypervisor, await planTemplate(hypervisor, request));
  await watch.requireUntouched();
  await execa('qemu-io', ['-f', 'raw', '-c', 'write 0 64k', image]);
  await t.rejects(watch.requireUntouched(), { code: 'MACHINE_INTERFERED', message: /changed image/ });
});

void t.test('a volume of a pool is found where the pool keeps its files', async (t) => {
  await using site = await Site.create();
  const images = join(site.directory, 'images');
  const image = await makeImage(join(images, 'base.qcow2'));
  const pool = (name: string, type: string, path: string) => ({
    kind: 'pool' as const,
    name,
    uuid: name,
    definition: `<pool type='${type}'><name>${name}</name><target><path>${path}</path></target></pool>`,
    autostart: true,
  });
  site.world.hostDefinitions.push(pool('default', 'dir', images), pool('vg', 'logical', '/dev/vg'));
  const living = site.openAgent();
  t.equal(await backUp(living, 'base', 'default/base.qcow2'), undefined);
  const { manifest } = await living.agent.backups.find('base@latest');
  t.equal(manifest?.volumes[0]?.source, image);
  for (const wanted of ['vg/base', 'nowhere/base.qcow2', 'default/..', 'base.qcow2'])
    await t.rejects(backUp(living, 'base', wanted), { code: 'POOL_UNUSABLE', hint: /\w/ }, wanted);
});

void t.test('an agent that dies at any point of it leaves nothing behind', async (t) => {
  await using site = await Site.create();
  const image = await makeImage(join(site.directory, 'images', 'base.qcow2'));
  const points: string[] = [];
  const plain = site.openAgent((moment) => {
    if (moment.startsWith('backup/')) points.push(moment);
  });
  t.equal(await backUp(plain, 'base', image), undefined);
  for (const point of new Set(points)) {
    const count = (await plain.agent.storage('near').list()).length;
    const living = site.openAgent((moment, self) => {
      if (moment === point) self.life.die();
    });
    await living.life.live(() => backUp(living, 'base', image));
    site.buryOwners();
    const recovered = await site.recover();
    t.equal(recovered.journal.holding().length, 0, point);
    const row = recovered.journal.list()[0];
    const made = (await plain.agent.storage('near').list()).length - count;
    t.equal(made, row?.state === 'finished' ? 1 : 0, `${point}: ${row?.state}`);
    t.same((await plain.agent.storage('near').partials()).length, 0);
    const left = await execa('find', [
      site.directory,
      '-name',
      '.stillpoint*',
      '-o',
      '-name',
      '*-definition',
    ]);
    t.equal(left.stdout, '', point);
  }
});
