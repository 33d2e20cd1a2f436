import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { eventually } from '../../test/lab/eventually.ts';
import { refusal } from '../../test/sim/errors.ts';
import { type LivingAgent, removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';
import type { Manifest } from '../../storage/manifest.ts';
import { Together } from '../snapshot/together.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { JobRow } from '../jobs/job.ts';

/* Backups of several machines that share one T1. */

t.teardown(removeSharedImages);

const names = ['m', 'n'] as const;

/** A site with a second machine, `n`. */
async function siteOfTwo(t: Test, options: SiteOptions = {}): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], ...options });
  t.teardown(() => site[Symbol.asyncDispose]());
  const path = join(site.directory, 'images', 'n-vda.qcow2');
  await copyFile(site.image('vda'), path);
  await site.world.addMachine({
    name: 'n',
    volumes: [{ target: 'vda', path, exists: true }],
    guestAgent: true,
  });
  await site.world.startMachine('n');
  return site;
}

type GroupMode = 'disk' | 'live';

async function backUp({ agent, life }: LivingAgent, mode?: GroupMode): Promise<readonly JobRow[]> {
  const rows = await life.live(async () =>
    agent.runTogether(await agent.createTogether(names.map((machine) => ({ machine, mode })))),
  );
  return rows ?? [];
}

/** Both machines run, thawed, on their own images, and nothing of ours is left in them. */
function requireFree(t: Test, site: Site, about: string): void {
  for (const name of names) {
    const { status, instance, persistent } = site.world.machine(name);
    t.match(
      { state: status.state, frozen: instance?.guest?.frozen, backup: instance?.backup },
      { state: 'running', frozen: false, backup: undefined },
      `${about}: ${name}`,
    );
    const { path } = DomainXml.parse(persistent ?? '').volume('vda');
    t.match(path, /vda\.qcow2$/, `${about}: ${name}`);
  }
}

async function manifests(site: Site): Promise<readonly (Manifest | null)[]> {
  const entries = await site.openAgent().agent.storage('near').list();
  return entries.map(({ manifest }) => manifest);
}

void t.test('all stand still when the first begins, until the last has begun', async (t) => {
  const site = await siteOfTwo(t);
  const seen: string[] = [];
  const living = site.openAgent((moment) => {
    const states = names.map((name) => {
      const { status, instance } = site.world.machine(name);
      return `${status.state}${instance?.guest?.frozen === true ? ' frozen' : ''}`;
    });
    if (/^libvirt\/(?:before|after):beginBackup|:resume$|:thawGuest$/.test(moment))
      seen.push(`${moment} ${states.join()}`);
  });
  t.same(
    (await backUp(living)).map(({ state }) => state),
    ['finished', 'finished'],
  );
  const both = 'paused frozen,paused frozen';
  t.same(seen.slice(0, 4), [
    `libvirt/before:beginBackup ${both}`,
    `libvirt/before:beginBackup ${both}`,
    `libvirt/after:beginBackup ${both}`,
    `libvirt/after:beginBackup ${both}`,
  ]);
  t.ok(seen.findIndex((moment) => moment.includes(':resume')) === 4, seen.join('\n'));
  const [one, other] = await manifests(site);
  t.equal(one?.pointInTime, other?.pointInTime);
  t.same(one?.group, other?.group);
  t.same(one?.group?.machines, ['m', 'n']);
  for (const manifest of [one, other]) {
    t.match(manifest, { mode: 'disk', consistency: 'filesystem', modeReason: 'one instant for m, n' });
    t.ok((manifest?.pauseMs ?? 0) > 0, 'the pause is measured');
  }
  requireFree(t, site, 'afterwards');
});

void t.test('with their memory all stand still until that of the last one is written', async (t) => {
  const site = await siteOfTwo(t);
  const seen: string[] = [];
  const living = site.openAgent((moment) => {
    if (/:snapshotLive$|:resume$/.test(moment))
      seen.push(`${moment} ${names.map((name) => site.world.machine(name).status.state).join()}`);
  });
  t.same(
    (await backUp(living, 'live')).map(({ state }) => state),
    ['finished', 'finished'],
  );
  const both = 'paused,paused';
  t.same(seen.slice(0, 5), [
    `libvirt/before:snapshotLive ${both}`,
    `libvirt/before:snapshotLive ${both}`,
    `libvirt/after:snapshotLive ${both}`,
    `libvirt/after:snapshotLive ${both}`,
    `libvirt/before:resume ${both}`,
  ]);
  const [one, other] = await manifests(site);
  t.equal(one?.pointInTime, other?.pointInTime);
  t.same(one?.group, other?.group);
  for (const manifest of [one, other]) {
    t.match(manifest, { mode: 'live', memory: { running: true }, group: { machines: ['m', 'n'] } });
    t.ok((manifest?.pauseMs ?? 0) > 0, 'the pause is measured');
  }
  requireFree(t, site, 'afterwards');
});

void t.test('when one cannot write its memory, none is backed up, and all run on', async (t) => {
  for (const operation of ['snapshotLive', 'suspend'] as const) {
    const site = await siteOfTwo(t);
    site.world.failNext(operation, refusal('operationFailed', 'it cannot'));
    const rows = await backUp(site.openAgent(), 'live');
    const codes = rows.map(({ error }) => error?.code);
    t.equal(codes.filter((code) => code === 'GROUP_FAILED').length, 1, `${operation}: ${codes.join()}`);
    requireFree(t, site, operation);
    t.same(await manifests(site), []);
    t.same(site.openAgent().journal.holding(), []);
  }
});

void t.test('a machine that somebody lets run, or suspends, in the meantime fails the group', async (t) => {
  for (const [point, code, act] of [
    ['backup/snapshot/held', 'MACHINE_INTERFERED', 'resume'],
    ['backup/before:snapshot', 'MACHINE_STATE_UNSUITABLE', 'suspend'],
  ] as const) {
    const site = await siteOfTwo(t);
    let times = 0;
    const living = site.openAgent(async (moment) => {
      if (moment !== point) return;
      times += 1;
      // When the second is there both have been stopped, and neither is saved.
      if (times === 2) await site.world.connect()[act](site.uuid);
    });
    const rows = await backUp(living, 'live');
    t.same(new Set(rows.map(({ error }) => error?.code)), new Set(['GROUP_FAILED', code]), act);
    t.same(await manifests(site), []);
    if (act === 'suspend') await site.world.connect().resume(site.uuid);
    requireFree(t, site, act);
  }
});

void t.test('when one cannot begin, none is backed up, and all run on', async (t) => {
  for (const [operation, freeze] of [
    ['beginBackup', 'auto'],
    ['suspend', 'auto'],
    ['freezeGuest', 'required'],
  ] as const) {
    const site = await siteOfTwo(t, { freeze });
    site.world.failNext(operation, refusal('operationFailed', 'it cannot'));
    const rows = await backUp(site.openAgent());
    t.same(
      rows.map(({ state }) => state),
      ['failed', 'failed'],
      operation,
    );
    const codes = rows.map(({ error }) => error?.code);
    t.equal(codes.filter((code) => code === 'GROUP_FAILED').length, 1, `${operation}: ${codes.join()}`);
    requireFree(t, site, operation);
    t.same(await manifests(site), []);
    t.same(site.openAgent().journal.holding(), []);
  }
});

void t.test('a machine that is off, or a mode with memory, or one machine alone is refused', async (t) => {
  const site = await siteOfTwo(t);
  const { agent, journal } = site.openAgent();
  const together = (...machines: readonly { readonly machine: string; readonly mode?: 'save' }[]) =>
    agent.createTogether(machines);
  await t.rejects(together({ machine: 'm' }), { code: 'TOGETHER_UNSUITABLE' });
  await t.rejects(together({ machine: 'm' }, { machine: 'm' }), { code: 'TOGETHER_UNSUITABLE' });
  await t.rejects(together({ machine: 'm', mode: 'save' }, { machine: 'n', mode: 'save' }), {
    code: 'TOGETHER_UNSUITABLE',
    hint: /--mode/,
  });
  await t.rejects(together({ machine: 'm' }, { machine: 'x' }), { code: 'MACHINE_NOT_FOUND' });
  const held = await agent.createBackup({ machine: 'n' });
  await t.rejects(together({ machine: 'm' }, { machine: 'n' }), { code: 'MACHINE_BUSY' });
  t.same(
    journal.holding().map(({ id }) => id),
    [held.id],
    'what was written down for the others is ended',
  );
  await agent.run(held);
  await site.world.connect().powerOff(site.world.machine('n').uuid);
  const rows = await backUp(site.openAgent());
  t.match(rows, [
    { error: { code: 'GROUP_FAILED', message: /; n: n is off/ } },
    { error: { code: 'MACHINE_OFF' } },
  ]);
  t.equal(site.world.machine('m').status.state, 'running');
});

void t.test('a machine that its owner has suspended stays suspended', async (t) => {
  const site = await siteOfTwo(t);
  await site.world.connect().suspend(site.uuid);
  t.same(
    (await backUp(site.openAgent())).map(({ state }) => state),
    ['finished', 'finished'],
  );
  t.equal(site.world.machine('m').status.state, 'paused');
  t.equal(site.world.machine('n').status.state, 'running');
});

void t.test('a cancel before T1 ends all of them', async (t) => {
  const site = await siteOfTwo(t);
  const living = site.openAgent((moment, { journal }) => {
    const [job] = journal.holding();
    if (moment === 'backup/before:preflight' && job !== undefined) journal.requestCancel(job.id);
  });
  const rows = await backUp(living);
  t.ok(rows.some(({ state }) => state === 'cancelled'));
  t.ok(rows.every(({ state }) => state === 'cancelled' || state === 'failed'));
  requireFree(t, site, 'cancelled');
});

void t.test('who waits for another to be ready can be cancelled', { timeout: 60_000 }, async (t) => {
  const site = await siteOfTwo(t);
  const ready = Promise.withResolvers<void>();
  t.teardown(() => ready.resolve());
  let begun = 0;
  let lastMs = 0;
  const living = site.openAgent(async (moment) => {
    lastMs = performance.now();
    if (moment !== 'backup/before:begin') return;
    begun += 1;
    // The second is not ready before the first has given up.
    if (begun === 2) await ready.promise;
  });
  const { journal } = living;
  const rows = backUp(living);
  await eventually(() => begun === 2 && performance.now() - lastMs > 500);
  for (const { id } of journal.holding()) journal.requestCancel(id);
  await eventually(() => journal.holding().length === 1);
  ready.resolve();
  t.ok((await rows).some(({ state }) => state === 'cancelled'));
  t.ok((await rows).every(({ state }) => state === 'cancelled' || state === 'failed'));
  requireFree(t, site, 'cancelled');
});

for (const mode of ['disk', 'live'] as const) {
  void t.test(
    `an agent that dies at any moment of mode ${mode} leaves nobody suspended or frozen`,
    async (t) => {
      const plain = await siteOfTwo(t);
      const moments: string[] = [];
      await backUp(
        plain.openAgent((moment) => void moments.push(moment)),
        mode,
      );
      const counts = new Map<string, number>();
      let isTaken = false;
      const crashes = moments.flatMap((moment) => {
        const nth = (counts.get(moment) ?? 0) + 1;
        counts.set(moment, nth);
        const isInteresting =
          moment.startsWith('backup/begin') ||
          /:(?:beginBackup|snapshotLive|suspend|resume|freezeGuest|thawGuest)$/.test(moment);
        // After T1 each is on its own, and dies as in any other backup.
        const isFirst = moment.startsWith('backup/') && nth === 1 && !(mode === 'live' && isTaken);
        isTaken ||= moment === 'backup/after:mark';
        return isInteresting || isFirst ? [{ moment, nth }] : [];
      });
      t.ok(crashes.length > 20, `${crashes.length} moments`);
      const site = await siteOfTwo(t);
      for (const { moment, nth } of crashes) {
        const about = `${moment} ${nth}`;
        let count = 0;
        const before = (await manifests(site)).length;
        const living = site.openAgent((now, self) => {
          if (now === moment && ++count === nth) self.life.die();
        });
        await backUp(living, mode);
        site.buryOwners();
        const { rows } = await site.recover();
        requireFree(t, site, about);
        t.same(site.openAgent().journal.holding(), [], about);
        const made = (await manifests(site)).length - before;
        const finished = site
          .openAgent()
          .journal.list({ limit: 2 })
          .filter(({ state }) => state === 'finished').length;
        t.equal(made, finished, `${about}: ${rows.map(({ state }) => state).join()}`);
        if (nth <= names.length && /:(?:snapshotLive|suspend)$|\/h(?:old|eld)/.test(moment))
          t.equal(made, 0, `${about}: all of them or none`);
      }
    },
  );
}

void t.test('who does not stand still in time holds up nobody for longer', async (t) => {
  const together = new Together({ members: ['a', 'b'], pauseMaxMs: 20, readersMax: 1 });
  await t.rejects(together.meet('stopped', 'a'), { code: 'GROUP_FAILED', message: /within 0\.02 s/ });
  await t.rejects(together.meet('stopped', 'b'), { code: 'GROUP_FAILED' });
});

void t.test('a machine that a libvirtd came upon while it was being stopped runs on', async (t) => {
  const site = await siteOfTwo(t);
  const living = site.openAgent((moment, self) => {
    if (moment !== 'backup/begin/held') return;
    for (const name of names) {
      const machine = site.world.machine(name);
      // What the next libvirtd makes of a QEMU that does not run and of which nothing was written down.
      if (machine.status.state === 'paused') machine.status = { state: 'paused', reason: 'unknown' };
    }
    self.life.die();
  });
  await backUp(living);
  site.buryOwners();
  t.ok(names.some((name) => site.world.machine(name).status.reason === 'unknown'));
  await site.recover();
  requireFree(t, site, 'recovered');
});

void t.test('file systems are frozen for others no longer than a group may stand still', async (t) => {
  const together = new Together({ members: ['a', 'b'], pauseMaxMs: 20, readersMax: 1 });
  await t.rejects(together.meet('frozen', 'a'), { code: 'GROUP_FAILED', message: /within 0\.02 s/ });
});
