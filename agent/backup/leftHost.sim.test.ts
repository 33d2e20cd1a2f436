import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import t from 'tap';
import { listed } from '../../test/sim/invariants.ts';
import { ScheduledSite } from '../../test/sim/scheduledSite.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { liveFactsSchema } from './liveFacts.ts';

t.teardown(removeSharedImages);

/** What a migration leaves on the host that the machine was on: `stays`: its definition, as without `--undefinesource`. */
async function migrateAway(site: Site, definition: 'stays' | 'goes'): Promise<void> {
  const connection = site.world.connect();
  if (definition === 'goes') await connection.undefine(site.uuid);
  await connection.powerOff(site.uuid);
  if (definition === 'stays') site.world.machine('m').status = { state: 'shut-off', reason: 'migrated' };
}

async function digest(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex');
}

void t.test(
  'a machine that was migrated away is backed up in no mode, although its definition has stayed',
  async (t) => {
    await using site = await Site.create({ targets: ['vda'] });
    await migrateAway(site, 'stays');
    const { agent } = site.openAgent();
    for (const mode of ['auto', 'offline', 'disk', 'save', 'live'] as const)
      await t.rejects(
        agent.createBackup({ machine: 'm', mode }),
        { code: 'MACHINE_LEFT', retryable: false },
        mode,
      );
  },
);

for (const definition of ['stays', 'goes'] as const)
  for (const [mode, moment] of [
    ['disk', 'backup/before:preflight'],
    ['disk', 'backup/before:begin'],
    ['disk', 'backup/before:retain'],
    ['save', 'backup/before:prepare'],
    ['live', 'backup/before:checkpoint'],
    ['live', 'backup/before:snapshot'],
  ] as const)
    void t.test(
      `a backup whose machine is migrated before it has its T1 ends with that word (${moment} of ${mode}, its definition ${definition})`,
      async (t) => {
        await using site = await Site.create({ targets: ['vda'] });
        const { agent, journal } = site.openAgent(async (at) => {
          if (at === moment) await migrateAway(site, definition);
        });
        const row = await agent.run(await agent.createBackup({ machine: 'm', mode }));
        t.match(row, { state: 'failed', error: { code: 'MACHINE_LEFT', retryable: false } });
        t.same(journal.holding(), []);
        t.same(await listed(site), []);
      },
    );

for (const definition of ['stays', 'goes'] as const)
  void t.test(
    `a merge is never made on images that may be in use elsewhere (its definition ${definition})`,
    async (t) => {
      for (const mode of ['save', 'live'] as const) {
        await using site = await Site.create({ targets: ['vda'] });
        let before = '';
        const { agent } = site.openAgent(async (at) => {
          if (at !== 'backup/before:merge' || before !== '') return;
          await site.write();
          await migrateAway(site, definition);
          before = await digest(site.image('vda'));
        });
        const row = await agent.run(await agent.createBackup({ machine: 'm', mode }));
        t.match(row, { state: 'failed', holdsMachine: true }, mode);
        t.equal(await digest(site.image('vda')), before, `${mode}: the image is as it was`);
        const overlay = liveFactsSchema.safeParse(row.record).data?.plan?.volumes[0]?.overlay;
        if (overlay !== undefined) t.ok(existsSync(overlay), 'what the guest has written since T1 is there');
      }
    },
  );

for (const definition of ['stays', 'goes'] as const)
  void t.test(
    `the schedule goes on at the host that has the machine now, and here when it is back (its definition ${definition})`,
    async (t) => {
      await using host = await ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T00:30');
      await host.start();
      const connection = host.site.world.connect();
      const own = host.site.world.machine('m').persistent ?? '';
      await migrateAway(host.site, definition);
      await host.refresh();
      await host.until('2026-11-23T03:00');
      t.same(host.begunSlots(), []);
      if (definition === 'goes') await connection.define(own);
      await connection.start(host.site.uuid);
      await host.refresh();
      await host.until('2026-11-24T03:00');
      t.same(
        host.begunSlots(),
        ['2026-11-23T02:00', '2026-11-24T02:00'],
        'what was missed once, and the next',
      );
    },
  );

for (const definition of ['stays', 'goes'] as const)
  void t.test(
    `a run whose machine is migrated in the middle is not tried again here (its definition ${definition})`,
    async (t) => {
      await using host = await ScheduledSite.create(
        { schedule: { cron: '0 2 * * *', retries: { count: 3 } } },
        '2026-11-22T00:30',
      );
      let isGone = false;
      await host.start({
        meanwhile: async (moment) => {
          if (moment !== 'backup/before:begin' || isGone) return;
          isGone = true;
          await migrateAway(host.site, definition);
        },
      });
      await host.until('2026-11-22T02:00');
      await host.refresh();
      await host.until('2026-11-22T06:00');
      t.ok(isGone);
      t.same(host.begunSlots(), ['2026-11-22T02:00']);
      t.match(host.lines(/left this host/), [
        { machine: 'm', why: 'left-host', error: { code: 'MACHINE_LEFT' } },
      ]);
      t.same(host.lines(/tried again$/), []);
    },
  );
