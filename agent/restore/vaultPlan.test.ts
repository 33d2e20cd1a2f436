import { resolve } from 'node:path';
import t from 'tap';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { Agent } from '../agent.ts';

t.teardown(removeSharedImages);

void t.test('who serves a repository finds its configuration wherever he stands', async (t) => {
  await using site = await Site.create({ targets: ['vda'], storages: ['vault'] });
  const { agent, life } = site.openAgent();
  const row = await life.live(async () =>
    agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })),
  );
  t.match(row, { state: 'finished' });
  const here = new Agent({ ...agent.parts, configPath: 'here.yaml' });
  const plan = await here.planRestore({ backup: 'm@latest', inPlace: true, instant: true });
  t.match(plan.volumes, [
    { served: { repository: { config: resolve('here.yaml'), storage: 'vault', root: /^[0-9a-f]{64}$/ } } },
  ]);
});
