import t from 'tap';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { checkOff } from './machines.ts';
import { checkProblems } from './problems.ts';
import { checkSchedules } from './schedules.ts';

t.teardown(removeSharedImages);

void t.test('a schedule on which nobody acts fails, and a host without any is warned', async (t) => {
  await using scheduled = await Site.create({ policy: { schedule: '0 2 * * *' } });
  t.match(checkSchedules(scheduled.openAgent().agent), [{ verdict: 'fail', message: /no service runs/ }]);
  await using site = await Site.create();
  t.match(checkSchedules(site.openAgent().agent), [
    { verdict: 'warn', message: /^no policy has a schedule/, hint: /schedule: "30 2/ },
  ]);
});

void t.test('what status calls wrong fails in doctor, too', async (t) => {
  const rule = { from: 'near', to: 'vault' };
  const policy = { storages: ['near'], replicate: [rule] };
  await using site = await Site.create({ targets: ['vda'], storages: ['near', 'vault'], policy });
  const { agent } = site.openAgent();
  t.match(await checkProblems(agent), [
    { name: 'machines', verdict: 'warn', message: 'there is no backup of m' },
  ]);
  await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' }));
  t.same(await checkProblems(agent), []);
  if (site.vault === undefined) throw new Error('no vault');
  site.vault.fault = 'full';
  await agent.run(agent.replications.create({ name: 'm', uuid: site.uuid }, rule));
  await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk', storages: ['vault'] }));
  site.vault.fault = null;
  t.match(await checkProblems(agent), [
    { name: 'machine m', verdict: 'fail', message: /^the last backup of m failed/ },
    { name: 'machine m', verdict: 'fail', message: /^the last copy of m from near to vault failed/ },
  ]);
});

void t.test('machines that are off are named where neither --all nor a schedule takes them', async (t) => {
  await using site = await Site.create();
  const { agent } = site.openAgent();
  const [machine] = await agent.parts.hypervisor.machines();
  if (machine === undefined) throw new Error('no machine');
  t.same(checkOff(agent, [machine]), [], 'it runs');
  const off = { ...machine, status: { ...machine.status, state: 'shut-off' as const } };
  t.match(checkOff(agent, [off]), [{ verdict: 'ok', message: /^m: off and in no schedule; backup --all/ }]);
  await using scheduled = await Site.create({ policy: { schedule: '0 2 * * *' } });
  t.same(checkOff(scheduled.openAgent().agent, [off]), []);
});
