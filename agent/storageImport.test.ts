import { readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { printFinds } from '../cli/commands/storageImport.ts';
import { RecordedTerminal } from '../cli/fixture.ts';
import { removeSharedImages, Site, type StorageName } from '../test/sim/site.ts';
import { importStorage, type StorageFinds } from './storageImport.ts';

t.teardown(removeSharedImages);

async function siteWith(test: Test, name: StorageName): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], storages: [name] });
  test.teardown(() => site[Symbol.asyncDispose]());
  const { agent } = site.openAgent();
  for (const _ of [1, 2]) {
    await site.write();
    await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' }));
  }
  return site;
}

/** What a host finds. @param lost what it has not got of the host that made the backups */
async function finds(
  site: Site,
  name: StorageName,
  lost: { readonly machines?: boolean; readonly checkpoints?: boolean; readonly libvirt?: boolean } = {},
): Promise<StorageFinds> {
  const { agent } = site.openAgent();
  const { hypervisor } = agent.parts;
  const changed = new Proxy(hypervisor, {
    get(target, property, receiver) {
      if (property === 'machines' && lost.libvirt === true) return () => hypervisor.findMachine('nobody');
      if (property === 'machines' && lost.machines === true) return () => Promise.resolve([]);
      if (property === 'checkpoints' && lost.checkpoints === true) return () => Promise.resolve([]);
      const value: unknown = Reflect.get(target, property, receiver);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  return importStorage(agent.storage(name), { repositories: agent.repositories, hypervisor: changed });
}

function shown(name: string, found: StorageFinds): string {
  const recorded = new RecordedTerminal();
  printFinds(recorded, name, found);
  return recorded.stdout + recorded.stderr;
}

for (const name of ['near', 'vault'] as const) {
  void t.test(
    `${name}: a host that has lost everything is told what is there, and how to get it back`,
    async (t) => {
      const site = await siteWith(t, name);
      const found = await finds(site, name, { machines: true });
      t.match(found, {
        machines: [{ name: 'm', uuid: site.uuid, presence: 'elsewhere', nextStartsFrom: undefined }],
        problems: [],
        hypervisorProblem: null,
      });
      t.match(found.machines[0]?.backups, [
        { id: String, mode: 'disk', host: String, problem: null },
        { id: String, mode: 'disk', host: String, problem: null },
      ]);
      const newest = found.machines[0]?.backups[1]?.id;
      t.match(shown(name, found), new RegExp(`stillpoint restore ${newest} --storage ${name}\\n`));
    },
  );

  void t.test(`${name}: of a machine that is here it is told what the next backup starts from`, async (t) => {
    const site = await siteWith(t, name);
    const found = await finds(site, name);
    const newest = found.machines[0]?.backups[1]?.id;
    t.match(found.machines, [{ presence: 'here', nextStartsFrom: newest }]);
    const reinstalled = await finds(site, name, { checkpoints: true });
    t.match(reinstalled.machines, [{ presence: 'here', nextStartsFrom: null }]);
    t.match(shown(name, reinstalled), /reads everything/);
  });
}

void t.test('damage is told beside the backup, and hides no other one', async (t) => {
  const site = await siteWith(t, 'near');
  const entries = await site.openAgent().agent.storage('near').list();
  const [oldest] = entries;
  await truncate(join(oldest?.directory ?? '', oldest?.manifest?.volumes[0]?.file ?? ''), 0);
  const found = await finds(site, 'near');
  t.match(found.machines[0]?.backups, [{ problem: /vda/ }, { problem: null }]);
  t.match(shown('near', found), /damaged/);
});

void t.test('where libvirt does not answer, what is stored is told all the same', async (t) => {
  const site = await siteWith(t, 'vault');
  const found = await finds(site, 'vault', { libvirt: true });
  t.match(found, { hypervisorProblem: { code: String }, machines: [{ presence: 'unknown' }] });
  t.match(shown('vault', found), /only its images: .*--to DIR/);
});

void t.test('nothing is written into the storage, whatever is found', async (t) => {
  const site = await siteWith(t, 'vault');
  const directory = site.vault?.directory ?? '';
  const files = await readdir(directory, { recursive: true });
  const packs = files.filter((file) => /^packs\/..\/.{64}$/.test(file));
  const problems: string[] = [];
  for (const pack of packs.map((file) => join(directory, file))) {
    const content = await readFile(pack);
    await truncate(pack, 200);
    const found = await finds(site, 'vault');
    problems.push(...found.problems);
    t.ok(
      found.machines[0]?.backups.some(({ problem }) => problem !== null),
      pack,
    );
    await writeFile(pack, content);
  }
  t.ok(problems.length > 0, 'that of packs whose content nobody has to read is told, too');
  t.same((await readdir(directory, { recursive: true })).toSorted(), files.toSorted());
});
