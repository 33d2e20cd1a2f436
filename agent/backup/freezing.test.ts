import t, { type Test } from 'tap';

import type { SimulatedGuest } from '../../test/sim/machine.ts';
import { brokenPromises, listed } from '../../test/sim/invariants.ts';
import { type LivingAgent, removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';
import type { JobRow } from '../jobs/job.ts';

/* What becomes of a guest that is frozen for a backup of its disks, when its agent does not do as it should. */

t.teardown(removeSharedImages);

function guestOf(site: Site): SimulatedGuest {
  const guest = site.world.machine('m').instance?.guest;
  if (guest === undefined) throw new Error('the machine runs and has a guest agent');
  return guest;
}

/** Runs a backup of the disks; `meanwhile` hears every moment. */
async function backUp(
  site: Site,
  meanwhile: (moment: string, guest: SimulatedGuest) => void = () => undefined,
): Promise<{ readonly living: LivingAgent; readonly row: JobRow }> {
  const living = site.openAgent((moment) => meanwhile(moment, guestOf(site)));
  const row = await living.life.live(async () =>
    living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'disk' })),
  );
  if (row === undefined) throw new Error('the agent died');
  return { living, row };
}

async function requireIntact(t: Test, site: Site): Promise<void> {
  const { persistent, autostart } = site.world.machine('m');
  const promised = { machine: 'running', memoryKept: true, autostart, definition: persistent ?? '' } as const;
  t.same(await brokenPromises(site, promised), []);
}

async function newest(site: Site): Promise<Record<string, unknown>> {
  const { manifest } = (await listed(site)).at(-1) ?? {};
  return { ...manifest };
}

const options: SiteOptions = { targets: ['vda'] };

void t.test('a guest whose agent answers is frozen at T1, and thawed', async (t) => {
  await using site = await Site.create(options);
  const seen: string[] = [];
  const { row } = await backUp(site, (moment, { frozen }) => seen.push(`${moment} ${frozen}`));
  t.equal(row.state, 'finished');
  t.ok(seen.includes('backup/begin/frozen true') && seen.includes('backup/after:begin false'));
  const manifest = await newest(site);
  t.match(manifest, { consistency: 'filesystem', consistencyReason: /froze 1 file system/ });
  t.ok(Number(manifest['freezeMs']) > 0);
  await requireIntact(t, site);
});

void t.test('what keeps a guest from being frozen is said in the manifest', async (t) => {
  for (const [agent, consistencyReason] of [
    ['absent', 'no agent runs in the guest'],
    ['silent', /not ready: .*not responding/],
  ] as const) {
    await using site = await Site.create(options);
    guestOf(site).agent = agent;
    const { row } = await backUp(site);
    t.equal(row.state, 'finished');
    const manifest = await newest(site);
    t.match(manifest, { consistency: 'crash', consistencyReason });
    t.notOk('freezeMs' in manifest);
    await requireIntact(t, site);
  }
  await using never = await Site.create({ ...options, freeze: 'never' });
  const moments: string[] = [];
  await backUp(never, (moment) => moments.push(moment));
  t.notOk(moments.some((moment) => moment.includes('freezing')));
  t.match(await newest(never), { consistency: 'crash', consistencyReason: /policy/ });
  await using suspended = await Site.create({ ...options, suspended: true });
  await backUp(suspended);
  t.match(await newest(suspended), { consistency: 'crash', consistencyReason: /suspended/ });
});

void t.test('a guest that thawed by itself before T1 does not count as frozen', async (t) => {
  await using site = await Site.create(options);
  const { row } = await backUp(site, (moment, guest) => {
    if (moment === 'backup/begin/frozen') guest.frozen = false;
  });
  t.equal(row.state, 'finished');
  t.match(await newest(site), { consistency: 'crash', consistencyReason: /thawed before T1/ });
});

void t.test('an agent that hangs in the freeze freezes nothing that stays so', async (t) => {
  for (const freeze of ['auto', 'required'] as const) {
    await using site = await Site.create({ ...options, freeze });
    const { row } = await backUp(site, (moment, guest) => {
      if (moment !== 'backup/begin/freezing') return;
      guest.agent = 'silent';
      setTimeout(() => (guest.agent = 'answers'), 100);
    });
    if (freeze === 'auto') {
      t.equal(row.state, 'finished');
      t.match(await newest(site), { consistency: 'crash', consistencyReason: /not responding/ });
    } else {
      t.match(row, { state: 'failed', error: { code: 'GUEST_NOT_FROZEN' } });
      t.same(await listed(site), []);
    }
    await requireIntact(t, site);
  }
});

void t.test('where the policy requires it, there is no backup without an agent', async (t) => {
  for (const agent of ['absent', 'silent'] as const) {
    await using site = await Site.create({ ...options, freeze: 'required' });
    guestOf(site).agent = agent;
    const { row } = await backUp(site);
    t.match(row, { state: 'failed', error: { code: 'GUEST_NOT_FROZEN' } }, agent);
    t.same(await listed(site), []);
    await requireIntact(t, site);
  }
});

/** A backup whose agent in the guest goes away at a moment, and comes back after the backup was undone, or not. */
async function loseAgent(site: Site, at: string, comesBack: boolean): ReturnType<typeof backUp> {
  return backUp(site, (moment, guest) => {
    if (moment === at) guest.agent = 'absent';
    if (comesBack && moment === 'backup/recover/after:undo') guest.agent = 'answers';
  });
}

void t.test(
  'an agent that is lost in a frozen guest: QEMU is let go first, then the guest is thawed',
  async (t) => {
    for (const at of ['backup/begin/freezing', 'backup/begin/frozen']) {
      await using site = await Site.create(options);
      const { row, living } = await loseAgent(site, at, true);
      t.match(row, { state: 'failed', holdsMachine: false, error: { code: 'CANNOT_THAW' } }, at);
      if (at.endsWith('frozen')) t.match(living.warnings.join(), /was still frozen, and is thawed now/);
      t.same(await listed(site), []);
      await requireIntact(t, site);
    }
  },
);

void t.test('a guest that cannot be thawed keeps its job, which tries again until it can', async (t) => {
  await using site = await Site.create(options);
  const { living, row } = await loseAgent(site, 'backup/begin/frozen', false);
  t.match(row, { state: 'failed', holdsMachine: true, error: { code: 'CANNOT_THAW', hint: /fsfreeze/ } });
  t.equal(guestOf(site).frozen, true);
  guestOf(site).agent = 'answers';
  const [retried] = (await living.life.live(() => living.agent.retryParked())) ?? [];
  t.match(retried, { state: 'failed', holdsMachine: false, error: { message: /stopped to answer/ } });
  await requireIntact(t, site);
});

void t.test('and is let go when the job is cancelled', async (t) => {
  await using site = await Site.create(options);
  const { living, row } = await loseAgent(site, 'backup/begin/frozen', false);
  t.equal(row.holdsMachine, true);
  const cancelled = await living.life.live(() => living.agent.cancel(row.id));
  t.match(cancelled, { state: 'cancelled', holdsMachine: false });
  guestOf(site).frozen = false;
  await requireIntact(t, site);
});
