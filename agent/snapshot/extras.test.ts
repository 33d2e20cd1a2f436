import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { listed } from '../../test/sim/invariants.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { planExtras } from './extras.ts';

t.teardown(removeSharedImages);

const network = {
  kind: 'network',
  name: 'office network',
  uuid: '6f4a3b7e-5a3e-4f0b-9f57-2b3b7f9d7a11',
  definition: '<network><name>office network</name></network>',
  autostart: true,
} as const;

/** A machine with a kernel, an initial RAM disk that is gone, a network and a libvirt snapshot. */
async function siteWithExtras(test: Test): Promise<{ readonly site: Site; readonly kernel: string }> {
  const site = await Site.create({ targets: ['vda'] });
  test.teardown(() => site[Symbol.asyncDispose]());
  await mkdir(join(site.directory, 'kernels'));
  const kernel = join(site.directory, 'kernels', 'vmlinuz');
  await writeFile(kernel, 'a kernel');
  const machine = site.world.machine('m');
  const change = (xml: string): string =>
    xml
      .replace('</os>', `<kernel>${kernel}</kernel><initrd>${kernel}.gone</initrd></os>`)
      .replace(
        '</devices>',
        `<interface type='network'><source network='${network.name}'/></interface></devices>`,
      );
  if (machine.persistent === undefined || machine.instance === undefined) throw new Error('it does not run');
  machine.persistent = change(machine.persistent);
  machine.instance.definition = change(machine.instance.definition);
  site.world.hostDefinitions.push(network);
  return { site, kernel };
}

void t.test('what belongs to a machine beside its volumes is stored with each backup', async (t) => {
  const { site, kernel } = await siteWithExtras(t);
  for (const mode of ['save', 'live', 'disk'] as const) {
    await t.test(mode, async (t) => {
      // A mode that swaps images refuses a machine with snapshots.
      site.world.machine('m').snapshots.splice(0, 1, ...(mode === 'disk' ? ['before upgrade'] : []));
      const living = site.openAgent();
      t.match(await living.agent.run(await living.agent.createBackup({ machine: 'm', mode })), {
        state: 'finished',
      });
      const entry = (await listed(site)).at(-1);
      if (entry === undefined) throw new Error('no backup');
      const extras = entry.manifest?.extras ?? [];
      const kinds = extras.map((extra) => [extra.kind, 'source' in extra ? extra.source : extra.name]);
      t.same(kinds, [
        ['kernel', kernel],
        ['network', network.name],
        ...(mode === 'disk' ? [['snapshot', 'before upgrade']] : []),
      ]);
      const [stored, definition] = await Promise.all(
        extras.slice(0, 2).map(({ file }) => readFile(join(entry.directory, file), 'utf8')),
      );
      t.equal(stored, 'a kernel');
      t.equal(definition, network.definition);
      t.ok(
        living.warnings.some((warning) => /initrd .*\.gone is not part of the backup/.test(warning)),
        'what is not there is told',
      );
      t.match(await living.storages.get('near')?.verify(entry, { data: true }), {
        ok: true,
      });
      await site.write();
    });
  }
});

void t.test(
  'a network that goes away before it is stored ends the backup, and nothing is changed',
  async (t) => {
    const { site, kernel } = await siteWithExtras(t);
    const before = site.world.machine('m').persistent;
    const { agent } = site.openAgent();
    site.world.hostDefinitions.length = 0;
    await rm(kernel);
    t.match(await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })), {
      state: 'failed',
      holdsMachine: false,
      error: { code: 'MACHINE_INTERFERED' },
    });
    t.same(await listed(site), []);
    t.equal(site.world.machine('m').persistent, before);
  },
);

void t.test(
  "an emulated TPM's state is found under the machine's UUID, without locks and half-written files",
  async (t) => {
    const { site } = await siteWithExtras(t);
    const state = join(site.directory, site.uuid, 'tpm2');
    await mkdir(state, { recursive: true });
    for (const name of ['tpm2-00.permall', 'tpm2-00.volatilestate', '.lock', 'TMP2-00.permall'])
      await writeFile(join(state, name), name);
    const planned = async (backend: string) => {
      const xml = (site.world.machine('m').persistent ?? '').replace(
        '</devices>',
        `<tpm model='tpm-crb'><backend type='${backend}'/></tpm></devices>`,
      );
      const { extras } = await planExtras(DomainXml.parse(xml), '/work', [], site.directory);
      return extras.filter(({ kind }) => kind === 'tpm');
    };
    t.match(await planned('emulator'), [
      { source: join(state, 'tpm2-00.permall'), label: 'tpm2-00.permall' },
    ]);
    t.equal((await planned('emulator')).length, 1);
    t.same(await planned('passthrough'), []);
  },
);
