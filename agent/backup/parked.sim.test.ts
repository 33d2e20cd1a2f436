import { createHash } from 'node:crypto';
import { copyFile, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';

import t from 'tap';

import { readImageInfo } from '../../common/qemuImage.ts';
import { StorageError } from '../../storage/errors.ts';
import { inTurn } from '../../test/sim/cases.ts';
import { brokenPromises, type Promised } from '../../test/sim/invariants.ts';
import { Refusals } from '../../test/sim/refusals.ts';
import { type LivingAgent, removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { JobRow } from '../jobs/job.ts';

/* What the owner of a machine does while a job of it was left with work to do, for days perhaps. */

const options: SiteOptions = { autostart: true, targets: ['vda'] };

t.teardown(removeSharedImages);

/** What is promised of the machine when nothing is wrong with it. */
function promised(site: Site, changes: Partial<Promised> = {}): Promised {
  const { persistent, autostart } = site.world.machine('m');
  return { machine: 'running', memoryKept: true, autostart, definition: persistent ?? '', ...changes };
}

type Reason = 'storage full' | 'no space for the merge';

interface Parked {
  readonly site: Site;
  readonly living: LivingAgent;
  readonly row: JobRow;
  /** Removes the reason; the job can be retried. */
  putRight(): void;
}

/** A backup that was left with work to do. */
async function park(site: Site, reason: Reason): Promise<Parked> {
  let isRight = reason !== 'no space for the merge';
  const living = site.openAgent((moment) => {
    const isOn = site.world.machine('m').instance !== undefined;
    if (!isRight && isOn && moment === 'backup/before:merge') site.world.fillTarget('m', 'vda');
  });
  const near = living.storages.get('near');
  if (near === undefined) throw new Error('a site has this storage');
  if (reason === 'storage full') {
    const begin = async (): Promise<never> => {
      throw new StorageError('STORAGE_FULL', 'no space left', { retryable: true });
    };
    living.storages.set(
      'near',
      new Proxy(near, { get: (target, key) => (key === 'begin' ? begin : bound(target, key)) }),
    );
  }
  const row = await living.life.live(async () =>
    living.agent.run(await living.agent.createBackup({ machine: 'm', mode: 'save' })),
  );
  if (row === undefined) throw new Error('the agent died');
  return {
    site,
    living,
    row,
    putRight: () => {
      isRight = true;
      living.storages.set('near', near);
      if (site.world.machine('m').instance !== undefined) site.world.freeTarget('m', 'vda');
    },
  };
}

function bound(target: object, key: string | symbol): unknown {
  const member: unknown = Reflect.get(target, key, target);
  return typeof member === 'function' ? member.bind(target) : member;
}

async function retried({ living, row }: Parked): Promise<JobRow | undefined> {
  return living.life.live(() => living.agent.retry(row.id));
}

/** What the owner does to the machine of a parked job, and what must be true after `retry`. */
const owners: readonly {
  readonly name: string;
  act(site: Site): Promise<void>;
  readonly expected: Partial<Promised>;
  readonly reason?: string;
}[] = [
  { name: 'nothing', act: async () => undefined, expected: { machine: 'running' } },
  {
    name: 'shuts it down',
    act: (site) => site.world.shutDownGuest('m'),
    expected: { machine: 'off', memoryKept: false },
    reason: 'shutdown',
  },
  {
    name: 'powers it off',
    act: (site) => site.world.connect().powerOff(site.uuid),
    expected: { machine: 'off', memoryKept: false },
    reason: 'destroyed',
  },
  {
    name: 'saves it (virsh managedsave)',
    act: managedSave,
    expected: { machine: 'off', memoryKept: false },
    reason: 'saved',
  },
  {
    name: 'suspends it',
    act: (site) => site.world.connect().suspend(site.uuid),
    expected: { machine: 'suspended' },
    reason: 'user',
  },
  {
    name: 'takes its autostart',
    act: (site) => site.world.connect().setAutostart(site.uuid, false),
    expected: { autostart: false },
  },
];

async function managedSave(site: Site): Promise<void> {
  const connection = site.world.connect();
  const definition = DomainXml.parse(await connection.definition(site.uuid, 'migratable'));
  definition.removeBackingStores();
  const file = join(site.directory, 'world', 'managed');
  await connection.save(site.uuid, { file, definition: definition.toString() });
  await rm(file);
  site.world.machine('m').hasManagedSave = true;
}

void t.test('what the owner does to the machine of a parked job stays as he wants it', async (t) => {
  const reasons: readonly Reason[] = ['storage full', 'no space for the merge'];
  await inTurn(
    reasons.flatMap((why) => owners.map((owner) => ({ why, owner }))),
    async ({ why, owner }) => {
      await using site = await Site.create(options);
      const what = `${why}; the owner ${owner.name}`;
      const promise = promised(site, owner.expected);
      const parked = await park(site, why);
      t.match(parked.row, { state: 'failed', holdsMachine: true }, what);
      t.match(
        site.world.machine('m'),
        { autostart: true, status: { state: 'running' } },
        `${what}: parked, it runs and has its autostart`,
      );
      if (why === 'storage full') await site.write();
      await owner.act(site);
      // Without a QEMU nothing is pulled, and no room is missing.
      const isHeld = site.world.machine('m').instance !== undefined || why === 'storage full';
      t.equal((await retried(parked))?.holdsMachine, isHeld, `${what}: not yet put right`);
      t.match(
        site.world.machine('m').status,
        owner.reason === undefined ? {} : { reason: owner.reason },
        `${what}: after a first retry`,
      );
      parked.putRight();
      const row = await ended(parked);
      t.equal(row.state, 'finished', `${what}: ${row.error?.message}`);
      t.same(await brokenPromises(site, promise), [], what);
      t.match(
        site.world.machine('m').status,
        owner.reason === undefined ? {} : { reason: owner.reason },
        what,
      );
      t.equal(site.world.machine('m').hasManagedSave, owner.act === managedSave, what);
    },
  );
});

/** A machine that is off needs no room to be merged: its job may have ended with the first attempt. */
async function ended(parked: Parked): Promise<JobRow> {
  const row = parked.living.journal.get(parked.row.id);
  return row.holdsMachine ? ((await retried(parked)) ?? row) : row;
}

void t.test('a machine that its owner has suspended stays suspended when its flush fails once', async (t) => {
  await using site = await Site.create(options);
  const promise = promised(site, { machine: 'suspended' });
  const parked = await park(site, 'no space for the merge');
  await site.world.connect().suspend(site.uuid);
  parked.putRight();
  const refusals = new Refusals([{ operation: 'flushVolume', nth: 1, times: 1, how: 'refused' }]);
  const next = site.openAgent(refusals.listen);
  t.match(await next.life.live(() => next.agent.retry(parked.row.id)), { state: 'finished' });
  t.equal(refusals.failed, 1);
  t.same(await brokenPromises(site, promise), []);
});

void t.test('a machine that was migrated away is left alone, and its images too', async (t) => {
  await using site = await Site.create(options);
  const parked = await park(site, 'no space for the merge');
  await site.world.shutDownGuest('m');
  site.world.machine('m').status = { state: 'shut-off', reason: 'migrated' };
  const before = await digest(site.image('vda'));
  parked.putRight();
  t.match(await retried(parked), { state: 'failed', holdsMachine: true, error: { message: /migrated/ } });
  t.match(site.world.machine('m').status, { state: 'shut-off', reason: 'migrated' });
  t.equal(await digest(site.image('vda')), before);
  t.match(
    await readImageInfo(site.image('vda'), 'qcow2', { inUse: false }),
    { backing: { format: 'qcow2' } },
    'still on its frozen image',
  );
});

void t.test('an image that somebody has put into the place of ours is not touched', async (t) => {
  await using site = await Site.create(options);
  const parked = await park(site, 'no space for the merge');
  await site.world.shutDownGuest('m');
  const ours = `${site.image('vda')}.ours`;
  await rename(site.image('vda'), ours);
  await copyFile(ours, site.image('vda'));
  const before = await digest(site.image('vda'));
  parked.putRight();
  t.match(await retried(parked), {
    state: 'failed',
    holdsMachine: true,
    error: { message: /another image in the place of vda/ },
  });
  t.equal(site.world.machine('m').status.state, 'shut-off');
  t.equal(await digest(site.image('vda')), before);
  await rename(ours, site.image('vda'));
  t.match(
    await retried(parked),
    { state: 'finished', holdsMachine: false },
    'with ours back the job comes to its end',
  );
});

async function digest(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex');
}
