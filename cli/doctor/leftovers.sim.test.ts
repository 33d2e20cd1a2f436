import { mkdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import t from 'tap';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { newId } from '../../common/ids.ts';
import { currentBootId } from '../../agent/jobs/owner.ts';
import { checkLeftovers } from './leftovers.ts';

t.teardown(removeSharedImages);

void t.test('what a dead job left in a storage is told with what takes it away there', async (t) => {
  await using site = await Site.create({ targets: ['vda'], storages: ['vault', 'near'] });
  for (const storage of site.openStorages().values())
    await storage.begin({ jobId: newId(), backupId: newId(), machine: { name: 'm', uuid: site.uuid } });
  const { agent, life } = site.openAgent();
  const checks = (await life.live(() => checkLeftovers(agent))) ?? [];
  t.match(
    checks.map(({ hint }) => hint),
    [/^stillpoint storage gc vault ends it /, /^look into it, then remove it: rm -r \//],
  );
});

void t.test('a mount whose command was killed is told with what takes it away', async (t) => {
  await using site = await Site.create({ targets: ['vda'], storages: ['near'] });
  const { agent, life } = site.openAgent();
  const place = join(dirname(agent.parts.config.agent.socket), 'looks', newId());
  await mkdir(place, { recursive: true });
  const look = {
    id: newId(),
    backup: { id: newId(), storage: 'near', machine: 'm', pointInTime: '2026-11-22T10:00:00.000Z' },
    // No process has started at the beginning of time.
    owner: { pid: process.pid, startTicks: 0, bootId: currentBootId() },
    directory: '/mnt/m of near',
    directoryMade: true,
    volumes: [],
  };
  await writeFile(join(place, 'look.json'), JSON.stringify(look));
  const checks = (await life.live(() => checkLeftovers(agent))) ?? [];
  await rm(dirname(place), { recursive: true });
  t.match(checks, [{ verdict: 'warn', hint: "stillpoint storage unmount '/mnt/m of near'" }]);
});
