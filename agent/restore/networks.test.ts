import t from 'tap';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { RestorePlan } from './plan.ts';
import type { RestoreRequest } from './request.ts';

t.teardown(removeSharedImages);

const devices = `<interface type='network'><mac address='52:54:00:aa:aa:aa'/><source network='lan'/><model type='virtio'/>
  <virtualport type='openvswitch'/></interface>
  <interface type='bridge'><mac address='52:54:00:bb:bb:bb'/><source bridge='no-such-bridge'/></interface>`;

/** A machine with cards on a network `lan` and on a bridge that this host never has, backed up with its memory. */
async function backedUp(): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], devices });
  addNetwork(site, 'lan');
  const { agent } = site.openAgent();
  await agent.run(await agent.createBackup({ machine: 'm', mode: 'save' }));
  return site;
}

function addNetwork(site: Site, name: string): void {
  const definition = `<network><name>${name}</name></network>`;
  site.world.hostDefinitions.push({ kind: 'network', name, uuid: name, definition, autostart: true });
}

function plan(site: Site, how: RestoreRequest): Promise<RestorePlan> {
  return site.openAgent().agent.planRestore({ backup: 'm@latest', ...how });
}

void t.test(
  'a machine that would not start for want of a network is refused, with what to type',
  async (t) => {
    await using site = await backedUp();
    const hint = /--network no-such-bridge=NAME .*no-such-bridge=none/;
    await t.rejects(plan(site, { inPlace: true }), {
      code: 'NETWORK_MISSING',
      message: /libvirt has lan/,
      hint,
    });
    await t.rejects(plan(site, { as: 'n' }), { code: 'NETWORK_MISSING' });
    const { conflicts } = await plan(site, { inPlace: true, start: 'none' });
    t.ok(conflicts.some(({ kind, message }) => kind === 'network' && message.includes('no-such-bridge')));
    await plan(site, { to: site.filesDirectory });
    await plan(site, { inPlace: true, volumes: ['vda'] });
    const networks = { 'no-such-bridge': 'lan' };
    for (const how of [{ to: site.filesDirectory }, { inPlace: true, volumes: ['vda'] }])
      await t.rejects(
        plan(site, { ...how, networks }),
        { code: 'RESTORE_TARGET_UNCLEAR', hint: /leave --network out/ },
        'it would do nothing there',
      );
  },
);

void t.test('what it is connected to instead must be there, and must be for one of its cards', async (t) => {
  await using site = await backedUp();
  const networks = { 'no-such-bridge': 'nowhere' };
  await t.rejects(plan(site, { inPlace: true, networks }), { code: 'NETWORK_MISSING', message: /nowhere/ });
  await t.rejects(plan(site, { inPlace: true, networks: { other: 'lan' } }), {
    code: 'RESTORE_TARGET_UNCLEAR',
    hint: /lan, no-such-bridge/,
  });
});

void t.test('the restored machine goes on with its cards where they were asked for', async (t) => {
  await using site = await backedUp();
  addNetwork(site, 'dmz');
  for (const [wanted, expected] of [
    ['dmz', { type: 'network', source: 'dmz', linkState: 'up' }],
    ['none', { type: 'user', source: undefined, linkState: 'down' }],
  ] as const) {
    const { agent } = site.openAgent();
    const networks = { 'no-such-bridge': wanted };
    const row = await agent.run(agent.createRestore(await plan(site, { inPlace: true, networks })));
    t.match(row, { state: 'finished', error: null });
    const { status, persistent, instance } = site.world.machine('m');
    t.match(status, { state: 'running' });
    for (const definition of [persistent, instance?.definition]) {
      const [first, second] = DomainXml.parse(definition ?? '').interfaces.slice(1);
      t.match(first, { type: 'network', source: 'lan', mac: '52:54:00:aa:aa:aa' }, 'the other card stays');
      t.match(second, { ...expected, mac: '52:54:00:bb:bb:bb' });
    }
  }
});

void t.test('nothing of the old place is left on a card', (t) => {
  const definition = DomainXml.parse(`<domain><devices>${devices}</devices></domain>`);
  definition.connect(0, { kind: 'bridge', name: 'br0' });
  t.match(definition.toString(), /<interface type="bridge">.*<source bridge="br0"\/>/s);
  t.notMatch(definition.toString(), /openvswitch|network="lan"/);
  t.end();
});
