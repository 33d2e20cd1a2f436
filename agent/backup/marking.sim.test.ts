import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { clearLeftMarkers } from '../leftMarkers.ts';

t.teardown(removeSharedImages);

const markerSchema = z.object({
  machine: z.string(),
  job: z.string(),
  since: z.iso.datetime(),
  untilAtMost: z.iso.datetime(),
});
const directoryOf = (site: Site): string => join(site.runDirectory, 'snapshotting');
const fileOf = (site: Site): string => join(directoryOf(site), 'm');

/** What happens to the machine in the window of each mode, and moments outside of it. */
const windows = {
  save: {
    inside: ['libvirt/before:save', 'libvirt/after:restoreState', 'libvirt/before:resume'],
    outside: ['backup/before:preflight', 'backup/before:stow', 'backup/before:merge'],
  },
  live: {
    inside: ['libvirt/before:snapshotLive', 'libvirt/after:snapshotLive'],
    outside: ['backup/before:prepare', 'backup/before:mark', 'backup/before:merge'],
  },
  disk: {
    inside: ['libvirt/before:freezeGuest', 'libvirt/before:beginBackup', 'libvirt/after:thawGuest'],
    outside: ['backup/before:preflight', 'backup/before:retain'],
  },
};

for (const mode of ['save', 'live', 'disk'] as const)
  void t.test(`a file says while a machine is snapshotted, and no longer (${mode})`, async (t) => {
    await using site = await Site.create({ targets: ['vda'] });
    const seen = new Map<string, boolean>();
    let marker: unknown;
    const { agent } = site.openAgent((moment) => {
      // The merge stops the machine once more, for a moment.
      if (!seen.has(moment)) seen.set(moment, existsSync(fileOf(site)));
      if (moment === windows[mode].inside[0]) marker = JSON.parse(readFileSync(fileOf(site), 'utf8'));
    });
    const row = await agent.run(await agent.createBackup({ machine: 'm', mode }));
    t.match(row, { state: 'finished' });
    for (const moment of windows[mode].inside) t.equal(seen.get(moment), true, moment);
    for (const moment of windows[mode].outside) t.equal(seen.get(moment), false, moment);
    const { machine, job, since, untilAtMost } = markerSchema.parse(marker);
    t.same([machine, job], ['m', row.id]);
    t.ok(Date.parse(untilAtMost) > Date.parse(since));
    t.same(await readdir(directoryOf(site)), []);
  });

void t.test('after a failure in the window, and after the death of the agent in it, it goes', async (t) => {
  for (const moment of [
    'libvirt/before:save',
    'libvirt/after:save',
    'file/rename',
    'libvirt/before:resume',
  ]) {
    await using site = await Site.create({ targets: ['vda'] });
    const dying = site.openAgent((at, { life }) => {
      if (at === moment) life.die();
    });
    await dying.life.live(async () =>
      dying.agent.run(await dying.agent.createBackup({ machine: 'm', mode: 'save' })),
    );
    t.ok(dying.life.isDead, moment);
    site.buryOwners();
    await site.recover();
    t.equal(site.world.machine('m').status.state, 'running');
    t.same(await readdir(directoryOf(site)).catch(() => []), [], moment);
  }
  await using site = await Site.create({ targets: ['vda'] });
  site.world.failNext('save', new Error('not now'), 'before');
  const { agent } = site.openAgent();
  t.match(await agent.run(await agent.createBackup({ machine: 'm', mode: 'save' })), { state: 'failed' });
  t.same(await readdir(directoryOf(site)), []);
});

void t.test(
  'the configuration can do without it, and a directory that cannot be made fails nothing',
  async (t) => {
    await using without = await Site.create({ targets: ['vda'], agent: { monitoringMarker: false } });
    const off = without.openAgent().agent;
    t.match(await off.run(await off.createBackup({ machine: 'm', mode: 'save' })), { state: 'finished' });
    t.notOk(existsSync(directoryOf(without)));
    await using site = await Site.create({ targets: ['vda'] });
    await writeFile(directoryOf(site), 'in the way');
    const { agent, warnings } = site.openAgent();
    t.match(await agent.run(await agent.createBackup({ machine: 'm', mode: 'save' })), { state: 'finished' });
    t.match(warnings.join('\n'), /monitoring is not told/);
  },
);

void t.test('the start of the service takes away what no unfinished job has left', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  const { agent } = site.openAgent();
  const job = await agent.createBackup({ machine: 'm', mode: 'save' });
  await mkdir(directoryOf(site));
  const left = {
    of: JSON.stringify({ job: 'lost' }),
    torn: '{"job',
    '.x.next': '',
    held: JSON.stringify({ job: job.id }),
  };
  for (const [name, content] of Object.entries(left)) await writeFile(join(directoryOf(site), name), content);
  await clearLeftMarkers(agent.parts);
  t.same(await readdir(directoryOf(site)), ['held']);
});
