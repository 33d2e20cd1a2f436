import { readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { DeadlineStorage } from '../../storage/deadlines.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { endure } from '../../test/sim/crashes.ts';
import { createImage, readGuestSequences } from '../../test/sim/images.ts';
import { listed, sequenceAtPointOf } from '../../test/sim/invariants.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import { restoredDefinition } from './definition.ts';
import { planRestore } from './planner.ts';
import type { RestoreRequest } from './request.ts';

t.teardown(removeSharedImages);

async function backedUp(test: Test): Promise<{ readonly site: Site; readonly entry: BackupEntry }> {
  const site = await Site.create({ targets: ['vda'], autostart: true });
  test.teardown(() => site[Symbol.asyncDispose]());
  test.same((await endure(site, 'backup', [])).problems, []);
  const [entry] = await listed(site);
  if (entry === undefined) throw new Error('no backup');
  return { site, entry };
}

type Backup = Awaited<ReturnType<typeof backedUp>>;

interface Refusal {
  readonly name: string;
  readonly code: string;
  readonly request: RestoreRequest;
  /** Changes the backup as it is described. */
  readonly entry?: (entry: BackupEntry) => BackupEntry;
  /** Changes the site. */
  readonly prepare?: (backup: Backup) => Promise<void> | void;
}

function changed(entry: BackupEntry, changes: Partial<NonNullable<BackupEntry['manifest']>>): BackupEntry {
  if (entry.manifest === null) throw new Error('no manifest');
  return { ...entry, manifest: { ...entry.manifest, ...changes } };
}

const refusals: readonly Refusal[] = [
  {
    name: 'it is not said what becomes of the machine that is there',
    code: 'RESTORE_TARGET_UNCLEAR',
    request: {},
  },
  { name: 'in place and as a new one', code: 'RESTORE_TARGET_UNCLEAR', request: { inPlace: true, as: 'n' } },
  {
    name: 'in place and elsewhere',
    code: 'RESTORE_TARGET_UNCLEAR',
    request: { inPlace: true, to: '/elsewhere' },
  },
  {
    name: 'some volumes as a new machine',
    code: 'RESTORE_TARGET_UNCLEAR',
    request: { volumes: ['vda'], as: 'n' },
  },
  {
    name: 'a volume, and not said whose',
    code: 'RESTORE_TARGET_UNCLEAR',
    request: { volumes: ['vda'] },
  },
  {
    name: 'a volume that the backup does not have',
    code: 'VOLUME_UNKNOWN',
    request: { inPlace: true, volumes: ['vda', 'vdz'] },
  },
  {
    name: 'a place for a volume that the backup does not have',
    code: 'VOLUME_UNKNOWN',
    request: { as: 'n', map: { vdz: '/elsewhere/vdz' } },
  },
  {
    name: 'a place in place',
    code: 'RESTORE_TARGET_UNCLEAR',
    request: { inPlace: true, map: { vda: '/elsewhere/vda' } },
  },
  {
    name: 'a place of nothing',
    code: 'RESTORE_TARGET_UNCLEAR',
    request: { map: { vda: '/elsewhere/vda' } },
  },
  {
    name: 'files that shall be started',
    code: 'RESTORE_TARGET_UNCLEAR',
    request: { to: '/elsewhere', start: 'boot' },
  },
  {
    name: 'a volume with the memory of all',
    code: 'NO_MEMORY_STATE',
    request: { inPlace: true, volumes: ['vda'], start: 'resume' },
  },
  {
    name: 'a volume that the machine has no more',
    code: 'VOLUME_UNKNOWN',
    request: { inPlace: true, volumes: ['vda'] },
    prepare: async ({ site }) => {
      const { persistent = '' } = site.world.machine('m');
      await site.world
        .connect()
        .define(persistent.replaceAll("dev='vda'", "dev='vdc'").replaceAll('dev="vda"', 'dev="vdc"'));
    },
  },
  { name: 'the name is taken', code: 'NAME_TAKEN', request: { as: 'm' } },
  { name: 'no name for a machine', code: 'NAME_INVALID', request: { as: '../n' } },
  {
    name: 'the machine has another name now',
    code: 'NAME_TAKEN',
    request: { inPlace: true },
    prepare: ({ site }) => void (site.world.machine('m').name = 'renamed'),
  },
  {
    name: 'an image of that name is there',
    code: 'PATH_TAKEN',
    request: { as: 'n' },
    prepare: ({ site }) => writeFile(site.image('vda', 'n'), 'precious'),
  },
  {
    name: 'a file is where its directory would be',
    code: 'PATH_TAKEN',
    request: { as: 'n', to: '/proc/version/below' },
  },
  {
    name: 'the image belongs to another machine now',
    code: 'PATH_TAKEN',
    request: { inPlace: true },
    prepare: async ({ site }) =>
      void (await site.world.addMachine({
        name: 'other',
        volumes: [{ target: 'vda', path: site.image('vda'), exists: true }],
      })),
  },
  {
    name: 'another machine reaches the image by a symbolic link',
    code: 'PATH_TAKEN',
    request: { inPlace: true },
    prepare: async ({ site }) => {
      const path = join(site.directory, 'link.qcow2');
      await symlink(site.image('vda'), path);
      await site.world.addMachine({ name: 'other', volumes: [{ target: 'vda', path, exists: true }] });
    },
  },
  {
    name: 'another machine stands on the image',
    code: 'PATH_TAKEN',
    request: { inPlace: true },
    prepare: async ({ site }) => {
      const path = join(site.directory, 'overlay.qcow2');
      await createImage(path, { format: 'qcow2', sizeBytes: 2 ** 20, backing: site.image('vda') });
      await site.world.addMachine({ name: 'other', volumes: [{ target: 'vda', path, exists: true }] });
    },
  },
  {
    name: 'there is no memory state to resume',
    code: 'NO_MEMORY_STATE',
    request: { inPlace: true, start: 'resume' },
    entry: (entry) => changed(entry, { memory: undefined }),
  },
  {
    name: 'snapshots',
    code: 'MACHINE_HAS_SNAPSHOTS',
    request: { inPlace: true },
    prepare: ({ site }) => void site.world.machine('m').snapshots.push('s'),
  },
  {
    name: 'checkpoints',
    code: 'MACHINE_HAS_SNAPSHOTS',
    request: { inPlace: true },
    prepare: ({ site }) => void site.world.machine('m').checkpoints.push('c'),
  },
  {
    name: 'a managed save',
    code: 'MACHINE_HAS_MANAGED_SAVE',
    request: { inPlace: true },
    prepare: ({ site }) => void (site.world.machine('m').hasManagedSave = true),
  },
  {
    name: 'no room for the checked copies',
    code: 'NOT_ENOUGH_DISK_SPACE',
    request: { inPlace: true },
    entry: (entry) =>
      changed(entry, {
        volumes: (entry.manifest?.volumes ?? []).map((volume) => ({ ...volume, storedBytes: 2 ** 50 })),
      }),
  },
  {
    name: 'a backup that is damaged',
    code: 'BACKUP_DAMAGED',
    request: { inPlace: true },
    entry: (entry) => ({ ...entry, state: 'Killed', problem: 'vda is missing' }),
  },
  {
    name: 'a backup without manifest',
    code: 'BACKUP_DAMAGED',
    request: { inPlace: true },
    entry: (entry) => ({ ...entry, manifest: null }),
  },
  {
    name: 'a definition that is not what was stored',
    code: 'BACKUP_DAMAGED',
    request: { as: 'n' },
    prepare: ({ entry }) =>
      writeFile(join(entry.directory, entry.manifest?.definition.file ?? ''), '<domain/>'),
  },
];

void t.test('what stands in the way of a restore is found before anything is touched', async (t) => {
  // Only what changes the site needs one of its own.
  const shared = await backedUp(t);
  for (const { name, code, request, prepare, entry: changeOf } of refusals) {
    const backup = prepare === undefined ? shared : await backedUp(t);
    const { site } = backup;
    await prepare?.(backup);
    const entry = changeOf?.(backup.entry) ?? backup.entry;
    const before = await readdir(join(site.directory, 'images'));
    await t.rejects(
      planRestore(site.world.connect(), entry, request),
      { name: /^(Restore|Storage)Error$/, code, hint: /\w/ },
      `${name}: ${code}`,
    );
    t.same(await readdir(join(site.directory, 'images')), before);
  }
});

void t.test('a volume that was a device needs a place, and becomes a file there', async (t) => {
  const { site, entry } = await backedUp(t);
  const volumes = entry.manifest?.volumes.map((volume) => ({ ...volume, kind: 'block' as const }));
  const device = changed(entry, volumes === undefined ? {} : { volumes });
  const plan = (request: RestoreRequest): ReturnType<typeof planRestore> =>
    planRestore(site.world.connect(), device, { as: 'n', ...request });
  await t.rejects(plan({}), { code: 'VOLUME_NOT_A_FILE', hint: /^--as NAME with --map vda=/ });
  const image = join(site.directory, 'images', 'placed.qcow2');
  t.match((await plan({ map: { vda: image } })).volumes, [{ image, existed: false }]);
  const to = join(site.directory, 'images');
  t.match((await plan({ to })).volumes, [{ image: join(to, 'n-vda.qcow2') }]);
});

void t.test('a plan for a new machine gives it a name, UUID, MACs and images of its own', async (t) => {
  const { site, entry } = await backedUp(t);
  const plan = await planRestore(site.world.connect(), entry, { as: 'n' });
  t.match(plan, {
    kind: 'new-machine',
    start: 'resume',
    present: null,
    autostart: false,
    linksDown: true,
    machine: { name: 'n' },
  });
  t.not(plan.machine.uuid, site.uuid);
  t.match(plan.conflicts, [{ kind: 'network' }]);
  const original = DomainXml.parse(site.world.machine('m').persistent ?? '');
  const restored = DomainXml.parse(restoredDefinition(plan, original.toString()));
  t.equal(restored.name, 'n');
  t.equal(restored.uuid, plan.machine.uuid);
  t.equal(restored.volume('vda').path, site.image('vda', 'n'));
  t.match(
    restored.interfaces,
    [{ mac: /^52:54:00:/, linkState: 'down' }],
    'two guests must not use one address',
  );
  t.not(restored.interfaces[0]?.mac, original.interfaces[0]?.mac);
  t.match(await planRestore(site.world.connect(), entry, { as: 'n', start: 'boot' }), {
    linksDown: false,
    memory: null,
  });
});

void t.test(
  'a plan for a restore in place says what is lost and keeps identity, paths and autostart',
  async (t) => {
    const { site, entry } = await backedUp(t);
    const plan = await planRestore(site.world.connect(), entry, { inPlace: true });
    t.match(plan, {
      kind: 'in-place',
      machine: { name: 'm', uuid: site.uuid },
      macs: [],
      autostart: true,
      present: { running: true, autostart: true },
    });
    t.equal(plan.volumes[0]?.image, site.image('vda'));
    t.same(
      plan.conflicts.map(({ kind }) => kind),
      ['machine', 'definition', 'path'],
    );
    const original = site.world.machine('m').persistent ?? '';
    t.equal(
      DomainXml.parse(restoredDefinition(plan, original)).toString(),
      DomainXml.parse(original).toString(),
      'nothing else is changed',
    );
  },
);

void t.test('a plan for single volumes leaves everything else of the machine alone', async (t) => {
  const { site, entry } = await backedUp(t);
  const request = { inPlace: true, volumes: ['vda'] };
  const plan = await planRestore(site.world.connect(), entry, request);
  t.match(plan, {
    kind: 'in-place',
    scope: 'volumes',
    start: 'boot',
    memory: null,
    nvram: null,
    definitionSafetyCopy: null,
  });
  t.same(
    plan.conflicts.map(({ kind }) => kind),
    ['machine', 'volumes', 'path'],
  );
  t.match(
    plan.conflicts.at(-1)?.message,
    plan.volumes[0]?.safetyCopy ?? 'none',
    'it says what the old image is called',
  );
  await site.world.connect().powerOff(site.uuid);
  t.match(
    await planRestore(site.world.connect(), entry, request),
    { start: 'none' },
    'what is off stays off',
  );
  const files = await planRestore(site.world.connect(), entry, { to: site.filesDirectory, volumes: ['vda'] });
  t.match(files, { kind: 'files', scope: 'volumes', memory: null });
});

void t.test('a machine that is gone is restored to another layout, also resumed', async (t) => {
  const { site, entry } = await backedUp(t);
  const connection = site.world.connect();
  await connection.powerOff(site.uuid);
  for (const name of await connection.checkpointNames(site.uuid))
    await connection.deleteCheckpoint(site.uuid, name, 'metadata');
  await connection.undefine(site.uuid);
  const image = join(site.directory, 'images', 'n-elsewhere.qcow2');
  const living = site.openAgent();
  const plan = await living.agent.planRestore({ backup: entry.id ?? '', inPlace: true, map: { vda: image } });
  t.match(plan, { memory: { adapted: true }, volumes: [{ image }] });
  t.match(await living.agent.run(living.agent.createRestore(plan)), { state: 'finished' });
  const { persistent = '', instance, status } = site.world.machine('m');
  t.match(status, { state: 'running' });
  for (const xml of [persistent, instance?.definition ?? ''])
    t.equal(DomainXml.parse(xml).volume('vda').path, image);
  t.equal(site.world.memorySequence('m'), await sequenceAtPointOf(entry), 'with its memory');
});

void t.test('of several volumes one goes back, and the other keeps what was written since', async (t) => {
  const site = await Site.create();
  t.teardown(() => site[Symbol.asyncDispose]());
  t.same((await endure(site, 'backup', [])).problems, []);
  const [entry] = await listed(site);
  const atPoint = entry === undefined ? -1 : await sequenceAtPointOf(entry);
  for (const _ of ['vda', 'vdb', 'vda']) await site.write();
  const { agent } = site.openAgent();
  const plan = await agent.planRestore({
    backup: 'm@latest',
    inPlace: true,
    volumes: ['vdb'],
    safetyCopy: false,
  });
  t.match(await agent.run(agent.createRestore(plan)), { state: 'finished' });
  t.same(await readGuestSequences(site.image('vda')), site.expected('vda', site.lastSequence));
  t.same(await readGuestSequences(site.image('vdb')), site.expected('vdb', atPoint));
  t.same(
    (await readdir(join(site.directory, 'images'))).toSorted(),
    ['m-vda.qcow2', 'm-vdb.qcow2'],
    'no safety copy was wanted',
  );
  t.match(site.world.machine('m').status, { state: 'running' });
});

void t.test('a machine that is gone is restored in place without being asked for', async (t) => {
  const { site, entry } = await backedUp(t);
  const connection = site.world.connect();
  await connection.powerOff(site.uuid);
  for (const name of await connection.checkpointNames(site.uuid))
    await connection.deleteCheckpoint(site.uuid, name, 'metadata');
  await connection.undefine(site.uuid);
  t.match(await planRestore(connection, entry, {}), { kind: 'in-place', present: null, autostart: true });
});

void t.test('a restore that fails puts everything back and starts the machine again', async (t) => {
  for (const [damage, code] of [
    [['libvirt/before:define', 1], 'OPERATION_FAILED'],
    [['libvirt/before:restoreState', 1], 'CANNOT_START_MACHINE'],
  ] as const) {
    const { site } = await backedUp(t);
    await site.write();
    const [moment] = damage;
    const living = site.openAgent();
    const plan = await living.agent.planRestore({ backup: 'm@latest', inPlace: true });
    site.world.failNext(
      moment.endsWith('define') ? 'define' : 'restoreState',
      new HypervisorError('OPERATION_FAILED', 'libvirt says no'),
    );
    const before = {
      definition: site.world.machine('m').persistent,
      image: await readFile(site.image('vda')),
    };
    const row = await living.agent.run(living.agent.createRestore(plan));
    t.match(row, { state: 'failed', holdsMachine: false, error: { code } });
    t.match(site.world.machine('m'), {
      autostart: true,
      persistent: before.definition,
      status: { state: 'running' },
    });
    t.ok(before.image.equals(await readFile(site.image('vda'))));
    t.same(await readdir(join(site.directory, 'images')), ['m-vda.qcow2'], 'no work is left');
  }
});

void t.test('a storage that hangs ends a restore before anything is touched', async (t) => {
  const { site } = await backedUp(t);
  const living = site.openAgent();
  const near = living.storages.get('near');
  if (near === undefined) throw new Error('no storage');
  let reads = 0;
  const hanging = new Proxy(near, {
    get: (target, name) => {
      if (name === 'copyOut') return () => new Promise(() => void (reads += 1));
      const value: unknown = Reflect.get(target, name);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  living.storages.set('near', new DeadlineStorage(hanging, { answerMs: 30_000, stallMs: 100 }));
  const plan = await living.agent.planRestore({ backup: 'm@latest', inPlace: true });
  const row = await living.agent.run(living.agent.createRestore(plan));
  t.match(row, {
    state: 'failed',
    holdsMachine: false,
    error: { code: 'STORAGE_UNREACHABLE', retryable: true },
  });
  t.equal(reads, 1);
  t.equal(site.world.memorySequence('m'), site.lastSequence, 'it was never stopped');
  t.same(await readdir(join(site.directory, 'images')), ['m-vda.qcow2']);
});

void t.test('a machine whose processor this host cannot offer is booted instead of failing', async (t) => {
  const refused = (): Error =>
    new HypervisorError('OPERATION_FAILED', 'operation failed: in whatever words', {
      libvirt: { code: 9, domain: 31 },
    });
  for (const alsoBoot of [false, true]) {
    const { site } = await backedUp(t);
    const living = site.openAgent();
    const plan = await living.agent.planRestore({ backup: 'm@latest', inPlace: true });
    site.world.failNext('restoreState', refused());
    site.world.offersProcessors = false;
    if (alsoBoot) site.world.failNext('start', refused());
    const row = await living.agent.run(living.agent.createRestore(plan));
    t.match(row, { state: 'finished', record: { bootedInstead: true } });
    const { status, persistent } = site.world.machine('m');
    t.match(status, { state: 'running', reason: 'booted' });
    t.match(living.warnings.join(), /without its memory/);
    t.equal(persistent?.includes('host-model'), alsoBoot, 'its processor is changed only where it must be');
  }
});

void t.test('a state that cannot be loaded for another reason is not thrown away for a boot', async (t) => {
  const { site } = await backedUp(t);
  const living = site.openAgent();
  const plan = await living.agent.planRestore({ backup: 'm@latest', inPlace: true });
  const failed = new HypervisorError('OPERATION_FAILED', 'the monitor hung up', {
    libvirt: { code: 9, domain: 10 },
  });
  site.world.failNext('restoreState', failed);
  const row = await living.agent.run(living.agent.createRestore(plan));
  t.match(row, { state: 'failed', error: { code: 'CANNOT_START_MACHINE' } });
  t.notMatch(row, { record: { bootedInstead: true } });
  t.equal(site.world.machine('m').status.state, 'running', 'what was there runs');
});

void t.test(
  'an artifact that was damaged is noticed while it is copied, with the machine still running',
  async (t) => {
    for (const kind of ['volume', 'memory'] as const) {
      for (const how of [{ inPlace: true }, { as: 'n' }]) {
        const { site, entry } = await backedUp(t);
        const name = kind === 'volume' ? entry.manifest?.volumes[0]?.file : entry.manifest?.memory?.file;
        const path = join(entry.directory, name ?? '');
        const content = await readFile(path);
        content.writeUInt8(content.readUInt8(content.length - 7) ^ 1, content.length - 7);
        await writeFile(path, content);
        const { agent } = site.openAgent();
        const row = await agent.run(
          agent.createRestore(await agent.planRestore({ backup: 'm@latest', ...how })),
        );
        t.match(
          row,
          { state: 'failed', holdsMachine: false, error: { code: 'BACKUP_DAMAGED' } },
          `${kind} ${JSON.stringify(how)}`,
        );
        t.equal(site.world.memorySequence('m'), site.lastSequence, 'it was never stopped');
        t.same(await readdir(join(site.directory, 'images')), ['m-vda.qcow2']);
      }
    }
  },
);
