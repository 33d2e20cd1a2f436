import t, { type Test } from 'tap';
import { errorRecord } from '../common/errors.ts';
import type { Manifest } from '../storage/manifest.ts';
import { removeSharedImages, Site, type SiteOptions } from '../test/sim/site.ts';

t.teardown(removeSharedImages);

/** Backs the machine of a site up, as its policy says. */
async function backUp(site: Site): Promise<Manifest | null> {
  const { agent } = site.openAgent();
  const row = await agent.run(await agent.createBackup({ machine: 'm' }));
  if (row.error !== null) throw new Error(row.error.message);
  return (await agent.backups.find('m@latest')).manifest;
}

async function decided(t: Test, options: SiteOptions): Promise<Manifest | null> {
  const site = await Site.create(options);
  t.teardown(() => site[Symbol.asyncDispose]());
  return backUp(site);
}

void t.test('auto takes no memory unless the policy asks for it, and the manifest says why', async (t) => {
  t.match(await decided(t, {}), {
    mode: 'disk',
    modeReason: 'auto: the machine runs, and its policy asks for no memory',
  });
  t.match(await decided(t, { suspended: true }), { mode: 'disk', memory: undefined });
  t.match(await decided(t, { policy: { memory: 'always' } }), {
    mode: 'live',
    modeReason: 'auto: policy default asks for the memory',
    consistency: 'memory',
  });
});

void t.test('auto takes save where live cannot, and the disks alone where neither can', async (t) => {
  const policy = { memory: 'always' };
  t.match(await decided(t, { policy, suspended: true }), {
    mode: 'save',
    modeReason: /^auto: policy default asks for the memory, and mode live cannot: m is suspended/,
  });
  const devices =
    "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='6' slot='2' function='0'/></source></hostdev>";
  t.match(await decided(t, { policy, devices }), {
    mode: 'disk',
    modeReason: /neither live \(m has .*\) nor save \(m has .*\) can$/,
  });
});

void t.test('a machine with more memory than the policy allows is backed up without it', async (t) => {
  const memoryMaxBytes = 64 * 1024 * 1024;
  t.match(await decided(t, { policy: { memory: 'always', memoryMaxBytes } }), { mode: 'live' });
  t.match(await decided(t, { policy: { memory: 'always', memoryMaxBytes: memoryMaxBytes - 1 } }), {
    mode: 'disk',
    modeReason: /64 MiB, more than memoryMaxBytes allows/,
  });
});

void t.test(
  'every: N takes the memory in the first backup and then in each Nth of each storage',
  async (t) => {
    await using site = await Site.create({ policy: { memory: { every: 3 } }, storages: ['near', 'far'] });
    const modes: (string | undefined)[] = [];
    for (let index = 0; index < 7; index += 1) modes.push((await backUp(site))?.mode);
    t.same(modes, ['live', 'disk', 'disk', 'live', 'disk', 'disk', 'live']);
    const { agent } = site.openAgent();
    for (const entry of await agent.storage('far').list()) await agent.deleteBackup(entry);
    t.equal((await backUp(site))?.mode, 'live', 'a storage without one gets one');
    t.match((await backUp(site))?.modeReason, /every 3\. backup, 2 more without it come first/);
  },
);

void t.test(
  'auto reads the images of a machine that is off, whatever the policy says of memory',
  async (t) => {
    await using site = await Site.create({ policy: { memory: 'always' } });
    await site.world.connect().powerOff(site.uuid);
    t.match(await backUp(site), { mode: 'offline', modeReason: 'auto: the machine is off' });
  },
);

void t.test('a machine that was started or shut off after auto was decided is decided again', async (t) => {
  const seen: string[] = [];
  await using site = await Site.create({
    listener: { error: (_, error) => seen.push(errorRecord(error).code) },
  });
  const { agent, journal } = site.openAgent();
  await site.world.connect().powerOff(site.uuid);
  const offline = await agent.createBackup({ machine: 'm', labels: { why: 'test' } });
  await site.world.startMachine(site.uuid);
  const ran = await agent.run(offline);
  t.match(ran, { state: 'finished', error: null });
  t.match((await agent.backups.find('m@latest')).manifest, { mode: 'disk', labels: { why: 'test' } });
  t.match(journal.get(offline.id), { state: 'failed', error: { code: 'MACHINE_RUNNING' } });

  const running = await agent.createBackup({ machine: 'm' });
  await site.world.connect().powerOff(site.uuid);
  t.match(await agent.run(running), { state: 'finished', error: null });
  t.match((await agent.backups.find('m@latest')).manifest, { mode: 'offline' });
  t.same(seen, ['MACHINE_RUNNING', 'MACHINE_OFF']);
});

void t.test('a mode that was asked for is not decided again when the machine does not suit it', async (t) => {
  await using site = await Site.create();
  const { agent, journal } = site.openAgent();
  await site.world.connect().powerOff(site.uuid);
  const offline = await agent.createBackup({ machine: 'm', mode: 'offline' });
  await site.world.startMachine(site.uuid);
  t.match(await agent.run(offline), { id: offline.id, state: 'failed', error: { code: 'MACHINE_RUNNING' } });
  t.equal(journal.list().length, 1);
});

void t.test('a dry run decides as the backup does, and changes nothing', async (t) => {
  await using site = await Site.create({ policy: { memory: 'always' } });
  const { agent, journal } = site.openAgent();
  t.match((await agent.planBackup({ machine: 'm' })).plan, {
    mode: 'live',
    modeReason: /asks for the memory$/,
  });
  t.same(journal.list(), []);
});
