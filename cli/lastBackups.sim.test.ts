import t from 'tap';
import { HostWatch } from '../agent/observe/hostWatch.ts';
import { removeSharedImages, Site } from '../test/sim/site.ts';
import { RecordedTerminal } from './fixture.ts';
import { lastBackupOf, lookAtBackups } from './lastBackups.ts';

t.teardown(removeSharedImages);

void t.test('the last backup is that of status, also while its storage is away', async (t) => {
  await using site = await Site.create({ storages: ['near', 'vault'] });
  const { agent } = site.openAgent();
  const job = await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk', storages: ['vault'] }));
  t.equal(job.state, 'finished');
  const recorded = new RecordedTerminal();
  const last = async () => lastBackupOf(agent, site.uuid, await lookAtBackups(recorded, agent));
  const there = await last();
  t.match(there, { id: String, storage: 'vault' });
  if (site.vault === undefined) throw new Error('no vault');
  site.vault.fault = 'away';
  t.same(await last(), { id: null, storage: 'vault', pointInTime: there?.pointInTime });
  t.match(recorded.stderr, /storage vault: /);
  const watch = new HostWatch({ agent, storagesEveryMs: 0, machinesEveryMs: 0, patienceMs: 10_000 });
  const [machine] = (await watch.look()).machines;
  t.equal(machine?.lastBackups[0]?.atMs, Date.parse(there?.pointInTime ?? ''));
});
