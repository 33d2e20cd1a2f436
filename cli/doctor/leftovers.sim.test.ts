import t from 'tap';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { newId } from '../../common/ids.ts';
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
    [/^stillpoint storage gc vault --fence /, /^look into it, then remove it: rm -r \//],
  );
});
