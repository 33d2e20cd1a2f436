import { readdir } from 'node:fs/promises';

import t from 'tap';

import { inTurn, sample, seed } from '../../test/sim/cases.ts';
import { type Crash, endure, Fate } from '../../test/sim/crashes.ts';
import { brokenPromises, listed } from '../../test/sim/invariants.ts';
import { removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';

t.teardown(removeSharedImages);

async function backedUp(options: SiteOptions = {}): Promise<Site> {
  const site = await Site.create({ autostart: true, targets: ['vda'], ...options });
  const { problems } = await endure(site, 'backup', []);
  if (problems.length > 0) throw new Error(problems.join('; '));
  return site;
}

async function pointsOfVerify(): Promise<readonly string[]> {
  await using site = await backedUp();
  const fate = new Fate(site);
  const { problems } = await endure(site, 'verify', [], fate);
  if (problems.length > 0) throw new Error(problems.join('; '));
  return [...new Set(fate.points)];
}

const points = await pointsOfVerify();

void t.test(`nothing of a verification is left, whoever dies in it (seed ${seed})`, async (t) => {
  t.comment(points.join(' '));
  const agents = points.map((moment): Crash => ({ moment, victim: 'agent' }));
  const others = sample(
    (['libvirtd', 'host'] as const).flatMap((victim) => points.map((moment): Crash => ({ moment, victim }))),
    3,
  );
  const changes = sample(
    Array.from({ length: 30 }, (_, index) => index + 1),
    3,
  ).map((nth): Crash => ({ moment: 'file/*', nth, victim: 'agent' }));
  await inTurn([...agents, ...others, ...changes], async (crash) => {
    await using site = await backedUp();
    const { problems, row } = await endure(site, 'verify', [crash]);
    t.same(
      problems,
      [],
      `${crash.victim}@${crash.moment} ${crash.nth ?? ''} → ${row?.state} ${row?.error?.code ?? ''}`,
    );
  });
});

void t.test('a verification tells what it saw, beside the backup, while the machine runs on', async (t) => {
  const site = await backedUp();
  t.teardown(() => site[Symbol.asyncDispose]());
  const { row } = await endure(site, 'verify', []);
  t.match(row, { state: 'finished', record: { result: { ok: false, evidence: null } } });
  const [entry] = await listed(site);
  t.match(entry, {
    state: 'Active',
    verified: { ok: false, start: 'resume', detail: /"never" did not appear/ },
  });
  t.equal((await readdir(entry?.directory ?? '')).filter((name) => name.startsWith('verified-')).length, 1);
  const { persistent = '' } = site.world.machine('m');
  t.same(
    await brokenPromises(site, {
      machine: 'running',
      memoryKept: true,
      autostart: true,
      definition: persistent,
    }),
    [],
  );
});

void t.test('a machine of which nothing can be seen is refused before anything is done', async (t) => {
  const site = await backedUp({ guestAgent: false });
  t.teardown(() => site[Symbol.asyncDispose]());
  const { agent } = site.openAgent();
  const entry = await agent.backups.find('m@latest');
  await t.rejects(agent.planBoot(entry, { deadlineMs: 1000 }), { code: 'NOTHING_TO_SEE', hint: /--expect/ });
});

void t.test('a machine in isolation reaches nothing of the host', async (t) => {
  const xml = DomainXml.parse(`<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>m</name><uuid>11111111-2222-4333-8444-555555555555</uuid><memory>1</memory>
  <devices>
    <disk type='file' device='disk'><source file='/images/a'/><target dev='vda' bus='virtio'/></disk>
    <disk type='block' device='disk'><source dev='/dev/sdx'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/isos/secret.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><model type='virtio'/><target dev='vnet0'/></interface>
    <interface type='hostdev'><mac address='52:54:00:00:00:02'/><source><address type='pci'/></source></interface>
    <filesystem type='mount'><source dir='/home'/><target dir='home'/></filesystem>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>
    <graphics type='vnc' port='5900' listen='0.0.0.0' passwd='p'><listen type='address' address='0.0.0.0'/></graphics>
    <serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><target port='0'/></serial>
    <console type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/tmp/agent'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='tcp'><source mode='connect' host='10.0.0.1' service='1'/><target type='virtio' name='other'/></channel>
    <video><model type='vga'/></video>
  </devices>
  <qemu:commandline><qemu:arg value='-netdev'/></qemu:commandline>
</domain>`);
  t.match(xml.isolate(['vda'], '/run/serial'), [/commandline/], 'what libvirt does not know is told');
  const text = xml.toString();
  for (const reached of [
    '/dev/sdx',
    'secret.iso',
    'br0',
    'vnet0',
    "type='pci'",
    '/home',
    'usb',
    '5900',
    '0.0.0.0',
    'passwd',
    '4555',
    '/tmp/agent',
    '10.0.0.1',
  ])
    t.notMatch(text, reached, reached);
  t.match(xml.interfaces, [
    { mac: '52:54:00:00:00:01', type: 'user', linkState: 'down', model: 'virtio' },
    { mac: '52:54:00:00:00:02', type: 'user', linkState: 'down' },
  ]);
  t.same(
    xml.volumes.map(({ target }) => target),
    ['vda', 'sda'],
    'the drive stays, and is empty',
  );
  t.match(text, '/run/serial');
  t.equal(xml.hasScreen, true);
});
