import { readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

import { execa } from 'execa';
import t, { type Test } from 'tap';

import { checkImage, readImageInfo } from '../../common/qemuImage.ts';
import { StorageError } from '../../storage/errors.ts';
import type { BackupWriter, Storage } from '../../storage/storage.ts';
import { requireStoragesForRead } from './storageRoom.ts';
import { endure, Fate } from '../../test/sim/crashes.ts';
import {
  createImage,
  readGuestSequences,
  moveRefcounts,
  setRefcount,
  writeGuestBlock,
} from '../../test/sim/images.ts';
import { brokenPromises, listed } from '../../test/sim/invariants.ts';
import { type LivingAgent, removeSharedImages, Site, type SiteOptions } from '../../test/sim/site.ts';

t.teardown(removeSharedImages);

async function siteFor(test: Test, options: SiteOptions = {}): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], ...options });
  test.teardown(() => site[Symbol.asyncDispose]());
  return site;
}

async function backUp({ agent }: LivingAgent, machine = 'm') {
  return agent.run(await agent.createBackup({ machine, mode: 'save' }));
}

/** The storage, with one thing of its writers or of itself replaced. */
function spoilt(
  storage: Storage,
  spoil: {
    readonly check?: Storage['check'];
    readonly sharesBlocks?: Storage['sharesBlocks'];
    readonly addByCopy?: BackupWriter['addByCopy'];
  },
): Storage {
  const over = <T extends object>(target: T, changes: Partial<T>): T =>
    new Proxy(target, {
      get: (object, key) => {
        const member: unknown = Reflect.get(changes, key) ?? Reflect.get(object, key, object);
        return typeof member === 'function' ? member.bind(object) : member;
      },
    });
  const { check, sharesBlocks, addByCopy } = spoil;
  return over(storage, {
    ...(check === undefined ? {} : { check }),
    ...(sharesBlocks === undefined ? {} : { sharesBlocks }),
    ...(addByCopy === undefined
      ? {}
      : { begin: async (request) => over(await storage.begin(request), { addByCopy }) }),
  });
}

function full(): never {
  throw new StorageError('STORAGE_FULL', 'no space left', { hint: 'free space' });
}

void t.test(
  'storages that must copy are filled first; the frozen image itself goes to the one on its file system',
  async (t) => {
    for (const storages of [
      ['near', 'far'],
      ['far', 'near'],
    ] as const) {
      const site = await siteFor(t, { storages });
      const { ino } = await stat(site.image('vda'));
      const began: string[] = [];
      const living = site.openAgent();
      for (const [name, storage] of living.storages) {
        living.storages.set(
          name,
          new Proxy(storage, {
            get: (object, key) => {
              if (key === 'begin') began.push(name);
              const member: unknown = Reflect.get(object, key, object);
              return typeof member === 'function' ? member.bind(object) : member;
            },
          }),
        );
      }
      t.match(await backUp(living), { state: 'finished' });
      t.same(began.slice(0, 2), ['far', 'near'], `configured: ${storages.join(', ')}`);
      const entries = new Map((await listed(site)).map((entry) => [entry.storage, entry]));
      const inodeIn = async (name: string): Promise<number> => {
        const entry = entries.get(name);
        return (await stat(join(entry?.directory ?? '', entry?.manifest?.volumes[0]?.file ?? ''))).ino;
      };
      t.equal(await inodeIn('near'), ino, 'taken, not copied');
      t.not(await inodeIn('far'), ino);
      const [a, b] = [...entries.values()].map(({ manifest }) => manifest);
      t.equal(a?.id, b?.id, 'one backup in two places');
      t.same(a?.volumes, b?.volumes);
    }
  },
);

void t.test(
  'an artifact stands alone and holds what its template holds; the template is not touched',
  async (t) => {
    const site = await siteFor(t);
    const directory = join(site.directory, 'images');
    const [template, image] = [join(directory, 'template.qcow2'), join(directory, 'n-vda.qcow2')];
    await createImage(template, { format: 'qcow2', sizeBytes: 2 ** 20 });
    await writeGuestBlock(template, 'qcow2', 1);
    const before = await readFile(template);
    await site.world.addMachine({ name: 'n', volumes: [{ target: 'vda', path: image, backing: template }] });
    await site.world.startMachine('n');
    await site.world.write('n', 'vda', 2);
    t.match(await backUp(site.openAgent(), 'n'), { state: 'finished' });
    const [entry] = await listed(site);
    const artifact = join(entry?.directory ?? '', entry?.manifest?.volumes[0]?.file ?? '');
    t.equal((await readImageInfo(artifact, 'qcow2')).backing, null);
    t.same(await readGuestSequences(artifact), [1, 2]);
    t.equal(
      (await readImageInfo(image, 'qcow2', { inUse: true })).backing?.path,
      template,
      'the machine still shares it',
    );
    t.same(await readGuestSequences(image), [1, 2]);
    t.ok(before.equals(await readFile(template)));
  },
);

void t.test(
  'a storage that gets full parks the job with the machine safe; retry finishes it, cancel gives it up',
  async (t) => {
    for (const then of ['retry', 'cancel'] as const) {
      const site = await siteFor(t, { storages: ['near', 'far'], autostart: true });
      const machine = site.world.machine('m');
      const before = { definition: machine.persistent ?? '', autostart: true };
      const living = site.openAgent(new Fate(site).listen);
      const far = living.storages.get('far');
      if (far === undefined) throw new Error('no storage');
      living.storages.set('far', spoilt(far, { addByCopy: full }));
      const parked = await backUp(living);
      t.match(parked, { state: 'failed', holdsMachine: true, error: { code: 'STORAGE_FULL' } });
      t.match(machine, { autostart: true, status: { state: 'running' } }, 'the machine is as it was');
      t.same(await listed(site), [], 'and nothing half is listed');
      await site.write();
      await t.rejects(living.agent.createBackup({ machine: 'm', mode: 'save' }), { code: 'UNFINISHED_JOB' });
      t.match(
        await living.agent.retry(parked.id),
        { holdsMachine: true, error: { code: 'STORAGE_FULL' } },
        'still full',
      );
      living.storages.set('far', far);
      const row = await living.agent[then](parked.id);
      t.match(row, { state: then === 'retry' ? 'finished' : 'cancelled', holdsMachine: false });
      t.equal((await listed(site)).length, then === 'retry' ? 2 : 0);
      t.same(await brokenPromises(site, { ...before, machine: 'running', memoryKept: true }), []);
      await t.rejects(living.agent.retry(parked.id), { code: 'JOB_STATE_INVALID' });
    }
  },
);

void t.test('a storage that cannot take the backup is refused before anything is touched', async (t) => {
  for (const [problem, code] of [
    ['STORAGE_READ_ONLY', 'STORAGE_READ_ONLY'],
    ['STORAGE_DENIED', 'STORAGE_DENIED'],
    ['STORAGE_FAILED', 'STORAGE_UNREACHABLE'],
    [undefined, 'STORAGE_FULL'],
  ] as const) {
    const site = await siteFor(t);
    const living = site.openAgent();
    const near = living.storages.get('near');
    if (near === undefined) throw new Error('no storage');
    const about = { name: 'near', location: near.location };
    const check: Storage['check'] = async () =>
      problem === undefined
        ? { ...about, ok: true, freeBytes: 1000, problem: null }
        : {
            ...about,
            ok: false,
            freeBytes: null,
            problem: { code: problem, message: 'no', hint: 'do', retryable: false },
          };
    living.storages.set('near', spoilt(near, { check }));
    await t.rejects(living.agent.planBackup({ machine: 'm', mode: 'save' }), { code, hint: /\w/ });
    t.match(await backUp(living), { state: 'failed', holdsMachine: false, error: { code } });
    t.equal(site.world.memorySequence('m'), site.lastSequence);
  }
});

void t.test('an increment is given the room of a full one where no blocks can be shared', async (t) => {
  const site = await siteFor(t);
  const living = site.openAgent();
  const near = living.storages.get('near');
  if (near === undefined) throw new Error('there is a storage');
  const disk = { machine: 'm', mode: 'disk' } as const;
  t.match(await living.agent.run(await living.agent.createBackup(disk)), { state: 'finished' });
  t.equal(await near.sharesBlocks(), await reflinksHere(site), 'what the storage says is what cp can do');
  t.same((await readdir(near.location)).toSorted(), ['m'], 'to find out leaves nothing behind');
  const check = async () => ({ ...(await near.check()), freeBytes: 4096 });
  living.storages.set('near', spoilt(near, { check, sharesBlocks: () => Promise.resolve(false) }));
  await t.rejects(living.agent.planBackup(disk), { code: 'STORAGE_FULL' });
  living.storages.set('near', spoilt(near, { check, sharesBlocks: () => Promise.resolve(true) }));
  const { plan } = await living.agent.planBackup(disk);
  t.match(plan.volumes, [{ reads: { near: { parent: /./ } } }]);
});

async function reflinksHere(site: Site): Promise<boolean> {
  const copy = join(site.directory, 'copy');
  const args = ['--reflink=always', site.image('vda'), copy];
  const { exitCode } = await execa('cp', args, { reject: false, timeout: 30_000 });
  await rm(copy, { force: true });
  return exitCode === 0;
}

void t.test('a backup that stays on the file system of its machine is planned with a warning', async (t) => {
  const near = await siteFor(t);
  t.match((await near.openAgent().agent.planBackup({ machine: 'm', mode: 'save' })).warnings, [
    /^local-only/,
  ]);
});

void t.test(
  'a cancel at any point ends the job in order: cancelled, or finished when it came too late',
  async (t) => {
    const site = await siteFor(t, { autostart: true });
    const plain = new Fate(site);
    t.same((await endure(site, 'backup', [], plain)).problems, []);
    const ends = new Map<string, string | undefined>();
    for (const point of new Set(plain.points)) {
      const fate = new Fate(site, undefined, (moment, { journal }) => {
        const [job] = journal.holding();
        if (moment === point && job !== undefined) journal.requestCancel(job.id);
      });
      const { problems, row } = await endure(site, 'backup', [], fate);
      t.same(problems, [], point);
      ends.set(point, row?.state);
    }
    t.equal(ends.get('backup/before:preflight'), 'cancelled');
    t.equal(ends.get('backup/before:merge'), 'cancelled');
    t.equal(ends.get('backup/before:commit'), 'finished');
    t.same(new Set(ends.values()), new Set(['cancelled', 'finished']));
  },
);

void t.test('more of a volume than a storage can keep is refused before anything is touched', async (t) => {
  const volume = { target: 'vdb', file: '/srv/vdb.qcow2', allocatedBytes: 7 * 1024 ** 4 };
  await t.resolves(requireStoragesForRead([], { volumes: [volume] }));
  await t.rejects(requireStoragesForRead([], { volumes: [{ ...volume, allocatedBytes: 8 * 1024 ** 4 }] }), {
    code: 'VOLUME_TOO_LARGE',
    message: /^vdb holds 8(?:\.0+)? TiB; .* up to 7(?:\.0+)? TiB/,
  });
});

async function artifactOf(site: Site): Promise<string> {
  const [entry] = await listed(site);
  return join(entry?.directory ?? '', entry?.manifest?.volumes[0]?.file ?? '');
}

void t.test('what a killed QEMU left in an image that belongs to nothing is not stored', async (t) => {
  const site = await siteFor(t);
  await setRefcount(site.image('vda'), 'behind the end', 1);
  t.same(await checkImage(site.image('vda'), { deadlineMs: 30_000 }), { errors: 0, leaks: 1 });
  const living = site.openAgent();
  t.equal((await backUp(living)).state, 'finished');
  t.notMatch(living.warnings.join(), /damaged/);
  t.same(await checkImage(await artifactOf(site), { deadlineMs: 30_000 }), { errors: 0, leaks: 0 });
});

void t.test('an image whose books cannot be read is stored all the same, and the job says so', async (t) => {
  const site = await siteFor(t);
  // The entry of the refcount table, by whose docs an offset is a multiple of a cluster.
  await moveRefcounts(site.image('vda'), 512);
  const before = await checkImage(site.image('vda'), { deadlineMs: 30_000 });
  t.ok(before.errors > 0);
  const living = site.openAgent();
  t.equal((await backUp(living)).state, 'finished');
  t.match(living.warnings.join('\n'), /the machine's image of vda is damaged, and stored as it is/);
  t.same(await checkImage(await artifactOf(site), { deadlineMs: 30_000 }), before);
});

void t.test('a backup of an image with errors tells of them, and stores it as it is', async (t) => {
  const site = await siteFor(t);
  await setRefcount(site.image('vda'), 'behind the end', 1);
  // The first is the header's.
  await setRefcount(site.image('vda'), 0, 2);
  await setRefcount(site.image('vda'), 3, 0);
  const before = await checkImage(site.image('vda'), { deadlineMs: 30_000 });
  t.equal(before.errors, 1);
  const living = site.openAgent();
  t.equal((await backUp(living)).state, 'finished');
  t.match(
    living.warnings.join('\n'),
    /the machine's image of vda is damaged, and stored as it is: .* 1 error\(s\)/,
  );
  t.same(await checkImage(await artifactOf(site), { deadlineMs: 30_000 }), before);
});
