import t, { type Test } from 'tap';
import { eventually, type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import {
  artifact,
  requireFinished,
  requireNothingLost,
  requireSameContent,
  type StoredBackup,
  TestAgent,
  witness,
} from './support.ts';

const regionMiB = 40;

/** The newest backup, taken while the writer pauses, so that the machine's images are the reference. */
async function backUpAtRest(
  t: Test,
  lab: Lab,
  agent: TestAgent,
  machine: LabMachine,
  options: {
    readonly storages?: readonly string[];
    readonly storageDir?: string;
    readonly reread?: boolean;
  } = {},
): Promise<StoredBackup> {
  const { storageDir, ...rest } = options;
  await machine.pauseWriter();
  const answer = await agent.backup(machine, { mode: 'disk', ...rest });
  requireFinished(t, answer);
  const backup = await agent.latest(machine.name, storageDir);
  await requireSameContent(t, lab, backup, machine);
  await machine.continueWriter();
  return backup;
}

/** How each volume was read: the id of its parent, or why in full. */
function readsOf({ manifest }: StoredBackup): readonly string[] {
  return manifest.volumes.map(({ parent, reason }) => parent ?? reason ?? '');
}

async function checkpointsOf(lab: Lab, machine: LabMachine): Promise<readonly string[]> {
  const listed = await lab.virsh('checkpoint-list', machine.uuid, '--name');
  return listed.split('\n').filter((name) => name.trim() !== '');
}

/** Has the guest write until there is something new. */
async function write(machine: LabMachine): Promise<void> {
  const { sequence } = await machine.writerStatus();
  await eventually(async () => (await machine.writerStatus()).sequence > sequence + 60);
}

void t.test('increments of a running machine', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const reflink = await lab.loopFilesystem('xfs', 600);
  const directory = (where: string): object => ({ kind: 'directory', path: where });
  await agent.setup.configure({
    storages: { local: directory(agent.setup.storageDir), reflink: directory(reflink) },
    rest: { policies: { default: { storages: ['local'] } } },
  });
  const machine = await lab.createMachine({
    name: 'sp-incr',
    regionMiB,
    volumes: [{ target: 'vda', prefillMiB: 16 }, { target: 'vdb', format: 'raw' }, { target: 'vdc' }],
  });
  await machine.waitUntilWriting({ rounds: 20 });

  await t.test('the first is full, the second an increment that stands alone and holds all', async (t) => {
    const whole = await witness(lab, machine);
    const first = await backUpAtRest(t, lab, agent, machine);
    t.match(readsOf(first), [/no earlier backup/, /raw/, /no earlier backup/]);
    await write(machine);
    const second = await backUpAtRest(t, lab, agent, machine);
    t.match(readsOf(second), [first.manifest.id, /raw/, first.manifest.id]);
    t.same(
      await checkpointsOf(lab, machine),
      [second.manifest.checkpoint],
      'the first is not needed any more',
    );
    await requireNothingLost(t, lab, agent, whole);
    const verified = await agent.ask({ kind: 'verify', backup: 'sp-incr@latest' });
    t.match(verified.result, { ok: true, data: true });
  });

  await t.test(
    'two storages have lineages of their own, and neither misses what only the other knows',
    async (t) => {
      const other = { storages: ['reflink'], storageDir: reflink };
      const full = await backUpAtRest(t, lab, agent, machine, other);
      t.match(readsOf(full)[0], /no earlier backup/);
      await write(machine);
      const local = await backUpAtRest(t, lab, agent, machine);
      t.equal((await checkpointsOf(lab, machine)).length, 2, 'each storage starts from its own');
      await write(machine);
      const increment = await backUpAtRest(t, lab, agent, machine, other);
      t.equal(readsOf(increment)[0], full.manifest.id);
      await write(machine);
      const both = await backUpAtRest(t, lab, agent, machine, { storages: ['local', 'reflink'] });
      const there = await agent.latest(machine.name, reflink);
      t.equal(there.manifest.id, both.manifest.id);
      t.equal(readsOf(both)[0], local.manifest.id, 'each goes on from its own');
      t.equal(readsOf(there)[0], increment.manifest.id);
      const compare = ['compare', artifact(both, 'vda'), artifact(there, 'vda')];
      t.equal((await lab.run('qemu-img', compare, { check: false })).exitCode, 0);
      t.same(await checkpointsOf(lab, machine), [both.manifest.checkpoint]);
      const { stdout } = await lab.run('du', ['-sm', reflink]);
      t.comment(`three backups of 16 MiB and more take ${stdout.split('\t')[0]} MiB with reflink`);
    },
  );

  await t.test('a deleted backup harms none that was made of it', async (t) => {
    const before = await agent.latest(machine.name);
    await write(machine);
    const after = await backUpAtRest(t, lab, agent, machine);
    t.equal(readsOf(after)[0], before.manifest.id);
    await lab.run('rm', ['-r', before.directory]);
    t.match((await agent.ask({ kind: 'verify', backup: after.manifest.id })).result, { ok: true });
    await lab.run('rm', ['-r', after.directory]);
    const next = await backUpAtRest(t, lab, agent, machine);
    t.match(readsOf(next)[0], /no earlier backup/, 'a lineage without its head begins anew');
  });

  await t.test('a damaged parent is not built on', async (t) => {
    const parent = await agent.latest(machine.name);
    await lab.run('truncate', ['-s', '-1', `${artifact(parent, 'vda')}.sums`]);
    await write(machine);
    const next = await backUpAtRest(t, lab, agent, machine);
    t.match(readsOf(next), [/sums is damaged/, /raw/, parent.manifest.id], 'of that volume only');
  });

  await t.test('a resized volume is read in full, that one only; then increments go on', async (t) => {
    await lab.virsh('blockresize', machine.uuid, 'vdc', '80M');
    const parent = await agent.latest(machine.name);
    const resized = await backUpAtRest(t, lab, agent, machine);
    t.match(readsOf(resized), [parent.manifest.id, /raw/, /resized/]);
    await write(machine);
    t.equal(readsOf(await backUpAtRest(t, lab, agent, machine))[2], resized.manifest.id);
    t.match(readsOf(await backUpAtRest(t, lab, agent, machine, { reread: true }))[0], /--reread/);
  });

  await t.test('after kill -9 of QEMU everything is read in full, with the reason', async (t) => {
    await write(machine);
    await lab.killQemu(machine.name);
    await eventually(async () => (await machine.state()).startsWith('shut off'));
    await machine.start();
    await machine.waitUntilWriting({ rounds: 5 });
    const full = await backUpAtRest(t, lab, agent, machine);
    t.match(readsOf(full), [/bitmap cannot be used/, /raw/, /bitmap cannot be used/]);
    const left = await checkpointsOf(lab, machine);
    t.ok(left.includes(full.manifest.checkpoint ?? ''));
    t.ok(left.length <= 2, 'of the broken ones only that which the other storage may start from is left');
    await write(machine);
    t.equal(readsOf(await backUpAtRest(t, lab, agent, machine))[0], full.manifest.id);
  });

  await t.test(
    'a power cycle keeps the lineage; what a shrink and a growth zeroed is not missed',
    async (t) => {
      const parent = await agent.latest(machine.name);
      await machine.destroy();
      const image = machine.imagePath('vdc');
      await lab.run('qemu-img', ['resize', '-q', '--shrink', image, '4M']);
      await lab.run('qemu-img', ['resize', '-q', image, '80M']);
      await machine.start();
      await machine.waitUntilWriting({ rounds: 5 });
      const next = await backUpAtRest(t, lab, agent, machine);
      t.match(readsOf(next), [parent.manifest.id, /raw/, parent.manifest.id]);
    },
  );

  await t.test(
    'a backup that dies between the checkpoint and the data loses nothing of the next',
    async (t) => {
      const parent = await agent.latest(machine.name);
      await write(machine);
      const killed = await agent.backup(machine, { mode: 'disk', crashAt: 'backup/after:begin' });
      t.match(killed.log, /killed/);
      await agent.ask({ kind: 'recover' });
      await write(machine);
      const next = await backUpAtRest(t, lab, agent, machine);
      t.equal(readsOf(next)[0], parent.manifest.id, 'it starts from the last one that was committed');
      const there = await agent.latest(machine.name, reflink);
      t.same(
        new Set(await checkpointsOf(lab, machine)),
        new Set([there.manifest.checkpoint, next.manifest.checkpoint]),
        'of the one that died none is left',
      );
    },
  );

  await t.test('restored, an increment boots and misses nothing', async (t) => {
    requireFinished(t, await agent.restore('sp-incr@latest', { as: 'sp-copy' }));
    const copy = await lab.findMachine('sp-copy');
    await copy.waitUntilWriting({ rounds: 5 });
    t.match(await copy.verifyFromInside(), { torn: 0, readErrors: 0 });
    await copy.destroy();
    requireFinished(t, await agent.restore('sp-incr@latest', { inPlace: true }));
    await machine.waitUntilWriting({ rounds: 5 });
    const after = await backUpAtRest(t, lab, agent, machine);
    t.match(readsOf(after)[0], /bitmap cannot be used/, 'restored images have no bitmaps');
  });

  await t.test('bitmaps whose checkpoints somebody took away are told by doctor, and released', async (t) => {
    await machine.destroy();
    for (const name of await checkpointsOf(lab, machine))
      await lab.virsh('checkpoint-delete', machine.uuid, name, '--metadata');
    const forgotten = /holds bitmap stillpoint-\S+ of a checkpoint that is gone/;
    t.match((await agent.setup.run(['doctor'])).stdout, forgotten);
    const released = await agent.setup.run(['release', 'sp-incr']);
    t.match(released, { exitCode: 0, stdout: /bitmap\(s\) removed/ });
    t.notMatch((await agent.setup.run(['doctor'])).stdout, forgotten);
  });

  await t.test('a running machine is released, and its owner is rid of everything of ours', async (t) => {
    await machine.start();
    await machine.waitUntilWriting({ rounds: 5 });
    await backUpAtRest(t, lab, agent, machine);
    t.equal((await checkpointsOf(lab, machine)).length, 1);
    t.match(await agent.setup.run(['release', 'sp-incr']), { exitCode: 0 });
    t.same(await checkpointsOf(lab, machine), []);
    await machine.destroy();
    for (const { path: image, format } of machine.volumes) {
      const { stdout } = await lab.run('qemu-img', ['info', '-f', format, image]);
      t.notMatch(stdout, /name: stillpoint-/, `no bitmap is left in ${image}`);
    }
    await lab.virsh('undefine', machine.uuid);
    t.notOk(
      (await lab.virsh('list', '--all', '--name')).split('\n').includes('sp-incr'),
      'it can be undefined',
    );
  });
});
