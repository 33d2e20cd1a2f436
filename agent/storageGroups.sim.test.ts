import { mkdir, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { brokenPromises } from '../test/sim/invariants.ts';
import { type LivingAgent, removeSharedImages, Site, type SiteOptions } from '../test/sim/site.ts';
import type { BackupRequest } from './backupRequests.ts';
import type { JobRow } from './jobs/job.ts';

t.teardown(removeSharedImages);

const main = { storages: ['near', 'vault'], storageGroups: { main: ['near', 'vault'] } } as const;
const modes = ['save', 'live', 'disk'] as const;
/** Preflight asks for room for the memory of the machine, 64 MiB. */
const quotaBytes = 72 * 1024 ** 2;

async function siteFor(test: Test, options: SiteOptions = {}): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], ...main, ...options });
  test.teardown(() => site[Symbol.asyncDispose]());
  return site;
}

async function backUp({ agent }: LivingAgent, request: Partial<BackupRequest> = {}): Promise<JobRow> {
  return agent.run(await agent.createBackup({ machine: 'm', mode: 'disk', ...request }));
}

/** Takes the directory `near` away, as a mount that is gone, or brings it back. */
async function setNear(site: Site, state: 'away' | 'there'): Promise<void> {
  const [there, away] = [join(site.directory, 'near'), join(site.directory, 'near-away')];
  await (state === 'away' ? rename(there, away) : rename(away, there));
}

async function backupsIn({ storages }: LivingAgent, name: string): Promise<number> {
  return (await storages.get(name)?.list())?.length ?? -1;
}

for (const mode of modes) {
  void t.test(`${mode}: the standby is taken while the master is away, and the master again`, async (t) => {
    const site = await siteFor(t);
    const living = site.openAgent();
    const first = await backUp(living, { mode });
    t.match(living.agent.backupFacts(first)?.settings, {
      storages: ['near'],
      storageChoices: [{ group: 'main', storage: 'near', passedOver: [] }],
    });
    await setNear(site, 'away');
    const second = await backUp(living, { mode });
    t.match(second, { state: 'finished', error: null });
    const before = living.warnings.length;
    await living.agent.finishDeletions();
    t.equal(
      living.warnings.length,
      before,
      'that there may be something to finish where it is away is no failure',
    );
    const facts = living.agent.backupFacts(second);
    const passedOver = [{ storage: 'near', code: 'STORAGE_UNREACHABLE', message: /near/ }];
    t.match(facts?.settings, { storages: ['vault'], storageChoices: [{ storage: 'vault', passedOver }] });
    t.match(facts?.warnings, [/vault stands in, in storage group main: near cannot be used/]);
    t.equal(await backupsIn(living, 'vault'), 1);
    await setNear(site, 'there');
    t.match(living.agent.backupFacts(await backUp(living, { mode }))?.settings, { storages: ['near'] });
    t.equal(await backupsIn(living, 'near'), 2);
    t.equal(
      (await living.agent.backups.list('m', () => t.fail())).length,
      3,
      'readers look into all of them',
    );
  });
}

void t.test(
  'an increment belongs to the storage that was chosen, and a switch says why all is read',
  async (t) => {
    const site = await siteFor(t);
    const living = site.openAgent();
    await backUp(living);
    await setNear(site, 'away');
    await backUp(living);
    const [inVault] = (await living.storages.get('vault')?.list()) ?? [];
    t.match(inVault?.manifest?.volumes, [{ read: 'full', reason: /near cannot be used.*no earlier backup/ }]);
    await site.write();
    await backUp(living);
    const [, second] = (await living.storages.get('vault')?.list()) ?? [];
    t.match(second?.manifest?.volumes, [{ read: 'increment', parent: inVault?.id }]);
    await setNear(site, 'there');
    const [master] = (await living.storages.get('near')?.list()) ?? [];
    await site.write();
    await backUp(living);
    const [, back] = (await living.storages.get('near')?.list()) ?? [];
    t.match(back?.manifest?.volumes, [{ read: 'increment', parent: master?.id }], 'its checkpoint was kept');
  },
);

void t.test(
  'where no storage of a group can be used, each is named with its reason, and nothing begins',
  async (t) => {
    const site = await siteFor(t);
    const living = site.openAgent();
    await setNear(site, 'away');
    if (site.vault !== undefined) site.vault.fault = 'away';
    await t.rejects(living.agent.createBackup({ machine: 'm' }), {
      code: 'STORAGE_GROUP_UNUSABLE',
      message: /group main .*near \(STORAGE_UNREACHABLE: .*vault \(STORAGE_UNREACHABLE: /,
      hint: /storage list/,
      retryable: true,
    });
    t.same(living.journal.list(), []);
  },
);

for (const mode of modes) {
  void t.test(`${mode}: the choice is made anew when the job begins`, async (t) => {
    const site = await siteFor(t);
    const living = site.openAgent();
    const created = await living.agent.createBackup({ machine: 'm', mode });
    await setNear(site, 'away');
    const job = await living.agent.run(created);
    t.match(job, { state: 'finished', error: null });
    t.match(living.agent.backupFacts(job)?.settings, { storages: ['vault'] });
    t.equal(await backupsIn(living, 'vault'), 1);
  });
}

for (const mode of modes) {
  void t.test(`${mode}: a storage whose quota a backup would pass is passed over`, async (t) => {
    const site = await siteFor(t, { quotaBytes: { near: 4096 } });
    const living = site.openAgent();
    const { storages } = await living.agent.planBackup({ machine: 'm', mode });
    t.same(storages, ['vault']);
    const job = await backUp(living, { mode });
    t.match(living.agent.backupFacts(job)?.settings, {
      storages: ['vault'],
      storageChoices: [{ passedOver: [{ storage: 'near', code: 'QUOTA_EXCEEDED', message: /4 KiB/ }] }],
    });
  });
}

void t.test('a storage that a backup goes to anyway is no second copy of a group', async (t) => {
  const site = await siteFor(t);
  const { storages } = await site
    .openAgent()
    .agent.planBackup({ machine: 'm', mode: 'disk', storages: ['main', 'near'] });
  t.same(storages, ['vault', 'near']);
});

void t.test('a restore from a group takes the newest that any of its storages has', async (t) => {
  const site = await siteFor(t);
  const living = site.openAgent();
  await backUp(living);
  await setNear(site, 'away');
  const newest = living.agent.backupFacts(await backUp(living))?.backupId;
  await setNear(site, 'there');
  const names = living.agent.storagesOf('main').map(({ name }) => name);
  t.same(names, ['near', 'vault']);
  t.match(await living.agent.backups.find('m@latest', names), { id: newest, storage: 'vault' });
});

for (const storage of ['near', 'vault'] as const) {
  const quota = { storages: [storage], storageGroups: {}, quotaBytes: { [storage]: quotaBytes } };
  const refused = { error: { code: 'QUOTA_EXCEEDED', hint: /quota/ } };

  for (const mode of ['live', 'disk'] as const) {
    void t.test(
      `${mode}: a backup that would pass the quota of ${storage} on its way leaves nothing`,
      async (t) => {
        const site = await siteFor(t, quota);
        const before = { definition: site.world.machine('m').persistent ?? '', autostart: false };
        const living = site.openAgent(async (moment) => {
          if (moment === 'backup/before:retain') await fill(site, storage);
        });
        t.match(await backUp(living, { mode }), { state: 'failed', holdsMachine: false, ...refused });
        t.equal(await backupsIn(living, storage), 0);
        t.equal(site.world.memorySequence('m'), site.lastSequence, 'the machine runs on');
        t.same(await brokenPromises(site, { ...before, machine: 'running', memoryKept: true }), []);
      },
    );
  }

  void t.test(
    `save: one that would pass the quota of ${storage} keeps its T1, and waits for room`,
    async (t) => {
      const site = await siteFor(t, quota);
      const before = { definition: site.world.machine('m').persistent ?? '', autostart: false };
      let filled = '';
      const living = site.openAgent(async (moment) => {
        if (moment === 'backup/before:retain' && filled === '') filled = await fill(site, storage);
      });
      const parked = await backUp(living, { mode: 'save' });
      t.match(parked, { holdsMachine: true, ...refused });
      t.equal(await backupsIn(living, storage), 0);
      t.equal(site.world.memorySequence('m'), site.lastSequence, 'the machine runs on');
      await rm(dirname(filled), { recursive: true });
      t.match(await living.agent.retry(parked.id), { state: 'finished', error: null });
      t.equal(await backupsIn(living, storage), 1);
      t.same(await brokenPromises(site, { ...before, machine: 'running', memoryKept: true }), []);
    },
  );
}

/** Somebody else writes into a storage while a backup runs, and leaves it nearly nothing of its quota. */
async function fill(site: Site, storage: 'near' | 'vault'): Promise<string> {
  const isNear = storage === 'near';
  const root = isNear ? site.storagePaths['near'] : site.vault?.directory;
  const file = join(root ?? '', isNear ? 'other' : 'packs/00', 'other');
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, isNear ? Buffer.alloc(quotaBytes - 4096, 1) : '');
  if (!isNear) await truncate(file, quotaBytes);
  return file;
}

void t.test('a storage whose quota is exceeded already is refused before anything is touched', async (t) => {
  for (const storage of ['near', 'vault'] as const)
    for (const mode of modes) {
      const site = await siteFor(t, { storages: [storage], storageGroups: {}, quotaBytes: { [storage]: 1 } });
      const living = site.openAgent();
      if (storage === 'near') await writeFile(join(site.storagePaths['near'] ?? '', 'other'), 'x');
      await t.rejects(living.agent.planBackup({ machine: 'm', mode }), { code: 'QUOTA_EXCEEDED' });
      t.match(await backUp(living, { mode }), {
        state: 'failed',
        holdsMachine: false,
        error: { code: 'QUOTA_EXCEEDED', message: /quota of 1 B/, hint: /larger quota in storages\./ },
      });
      t.equal(site.world.memorySequence('m'), site.lastSequence);
    }
});
