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

const regionMiB = 24;
const targets = ['vda', 'vdb'] as const;

/** How each volume was read: the id of its parent, or why in full. */
function readsOf({ manifest }: StoredBackup): readonly string[] {
  return manifest.volumes.map(({ parent, reason }) => parent ?? reason ?? '');
}

/** A backup that nobody compares yet: the guest writes on while it is made. */
async function backUp(
  t: Test,
  agent: TestAgent,
  machine: LabMachine,
  mode: 'disk' | 'live' | 'save',
  storages?: readonly string[],
): Promise<StoredBackup> {
  requireFinished(t, await agent.backup(machine, { mode, ...(storages === undefined ? {} : { storages }) }));
  return agent.latest(machine.name);
}

/** An increment while the writer pauses is, byte for byte, what the images hold: nothing before it was missed. */
async function requireNothingMissed(
  t: Test,
  lab: Lab,
  agent: TestAgent,
  machine: LabMachine,
  mode: 'disk' | 'live' = 'disk',
): Promise<StoredBackup> {
  await machine.pauseWriter();
  const backup = await backUp(t, agent, machine, mode);
  await requireSameContent(t, lab, backup, machine);
  await machine.continueWriter();
  return backup;
}

/** Has the guest write until there is something new. */
async function write(machine: LabMachine): Promise<void> {
  const { sequence } = await machine.writerStatus();
  await eventually(async () => (await machine.writerStatus()).sequence > sequence + 60);
}

/** Zeroes, discards and overwrites as a guest would: its own writer only writes. */
async function change(lab: Lab, machine: LabMachine, atMiB: number): Promise<void> {
  for (const [index] of targets.entries()) {
    const device = `/machine/peripheral/virtio-disk${index}/virtio-backend`;
    for (const command of [
      `write -z ${atMiB}M 192k`,
      `discard ${atMiB + 1}M 1M`,
      `write -P 9 ${atMiB + 2}M 64k`,
    ]) {
      const hmp = `qemu-io -d ${device} "${command}"`;
      const said = await lab.run('virsh', ['qemu-monitor-command', machine.name, '--hmp', hmp]);
      if (/error|fail/i.test(said.stdout)) throw new Error(`${hmp}: ${said.stdout}`);
    }
  }
}

/** Of a file system. */
async function usedMiB(lab: Lab, directory: string): Promise<number> {
  const { stdout } = await lab.run('df', ['--output=used', '-BM', directory]);
  return Number.parseInt(stdout.split('\n')[1] ?? '', 10);
}

void t.test('increments go through the backups of every mode, and live backups are increments', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const reflink = await lab.loopFilesystem('xfs', 600);
  const directory = (where: string): object => ({ kind: 'directory', path: where });
  await agent.setup.configure({
    storages: { local: directory(agent.setup.storageDir), reflink: directory(reflink) },
    rest: { policies: { default: { storages: ['local'] } } },
  });
  const machine = await lab.createMachine({
    name: 'sp-through',
    regionMiB,
    volumes: [
      { target: 'vda', prefillMiB: 32 },
      { target: 'vdb', prefillMiB: 32, path: `${reflink}/sp-through-vdb.qcow2` },
    ],
  });
  await machine.waitUntilWriting({ rounds: 20 });

  await t.test('a live backup is an increment of a disk backup, and the other way round', async (t) => {
    const first = await backUp(t, agent, machine, 'live');
    t.match(readsOf(first), [/no earlier backup/, /no earlier backup/]);
    await change(lab, machine, 33);
    const disk = await requireNothingMissed(t, lab, agent, machine);
    t.same(readsOf(disk), [first.manifest.id, first.manifest.id]);
    await write(machine);
    await change(lab, machine, 36);
    const live = await requireNothingMissed(t, lab, agent, machine, 'live');
    t.same(readsOf(live), [disk.manifest.id, disk.manifest.id]);
    const whole = await witness(lab, machine);
    const running = await backUp(t, agent, machine, 'live');
    t.same(readsOf(running), [live.manifest.id, live.manifest.id]);
    await requireNothingLost(t, lab, agent, whole);
    for (const target of targets) {
      const stored = await lab.readDisk(artifact(running, target), { regionMiB });
      t.match(stored, { runId: whole.writer?.runId, missing: [], torn: 0 }, `${target} of the running guest`);
    }
    const next = await requireNothingMissed(t, lab, agent, machine);
    t.same(readsOf(next), [running.manifest.id, running.manifest.id], 'what was written around T1 is in it');
  });

  await t.test('a live increment is restored with the memory that belongs to it', async (t) => {
    const { runId } = await machine.writerStatus();
    const backup = await backUp(t, agent, machine, 'live');
    t.equal(backup.manifest.volumes[0]?.read, 'increment');
    requireFinished(t, await agent.restore('sp-through@latest', { inPlace: true, start: 'resume' }));
    t.equal((await machine.waitUntilWriting({ rounds: 5 })).runId, runId, 'it goes on');
    t.match(await machine.verifyFromInside(), { runId, missing: 0, torn: 0, newer: 0, readErrors: 0 });
    const full = await requireNothingMissed(t, lab, agent, machine);
    t.match(
      readsOf(full),
      [/bitmap cannot be used/, /bitmap cannot be used/],
      'restored images have no bitmaps',
    );
  });

  await t.test('what is written, zeroed and discarded on the overlay is in the next increment', async (t) => {
    const killed = await agent.backup(machine, { mode: 'live', crashAt: 'backup/after:retain' });
    t.match(killed.log, /killed/);
    await change(lab, machine, 39);
    await write(machine);
    t.notOk((await agent.ask({ kind: 'recover' })).error);
    const live = await agent.latest(machine.name);
    const next = await requireNothingMissed(t, lab, agent, machine);
    t.same(readsOf(next), [live.manifest.id, live.manifest.id]);
  });

  await t.test('a QEMU that is killed on the overlay costs nothing but its memory', async (t) => {
    await agent.backup(machine, { mode: 'live', crashAt: 'backup/after:retain' });
    await change(lab, machine, 42);
    await lab.killQemu(machine.name);
    await eventually(async () => (await machine.state()).startsWith('shut off'));
    t.notOk((await agent.ask({ kind: 'recover' })).error);
    await machine.waitUntilWriting({ rounds: 5 });
    const live = await agent.latest(machine.name);
    const next = await requireNothingMissed(t, lab, agent, machine);
    t.same(readsOf(next), [live.manifest.id, live.manifest.id], 'the merge marks what it writes');
  });

  await t.test('a QEMU that is killed before the pivot costs a full read, with the reason', async (t) => {
    await agent.backup(machine, { mode: 'live', crashAt: 'backup/merge/suspended' });
    await lab.killQemu(machine.name);
    await eventually(async () => (await machine.state()).startsWith('shut off'));
    t.notOk((await agent.ask({ kind: 'recover' })).error);
    await machine.waitUntilWriting({ rounds: 5 });
    await change(lab, machine, 48);
    const next = await requireNothingMissed(t, lab, agent, machine, 'live');
    t.match(readsOf(next)[0], /bitmap cannot be used/, 'the volume whose commit was ready');
    t.same(readsOf(await requireNothingMissed(t, lab, agent, machine))[0], next.manifest.id, 'and goes on');
  });

  await t.test(
    'an increment after a backup with a pause misses nothing, also when libvirtd dies in its merge',
    async (t) => {
      await agent.backup(machine, { mode: 'save', crashAt: 'backup/after:resume' });
      await change(lab, machine, 54);
      await lab.virsh('blockpull', machine.name, 'vda');
      await lab.killLibvirtd('SIGKILL');
      await lab.startLibvirtd();
      t.notOk((await agent.ask({ kind: 'recover' })).error);
      const saved = await agent.latest(machine.name);
      t.equal(saved.manifest.mode, 'save');
      const next = await requireNothingMissed(t, lab, agent, machine);
      t.same(readsOf(next), [saved.manifest.id, saved.manifest.id]);
    },
  );

  await t.test('nor when the machine is switched off in the merge, which ends without it', async (t) => {
    await agent.backup(machine, { mode: 'save', crashAt: 'backup/after:resume' });
    await change(lab, machine, 57);
    await machine.destroy();
    t.notOk((await agent.ask({ kind: 'recover' })).error);
    await machine.start();
    await machine.waitUntilWriting({ rounds: 5 });
    const saved = await agent.latest(machine.name);
    t.equal(saved.manifest.mode, 'save');
    const next = await requireNothingMissed(t, lab, agent, machine);
    t.same(readsOf(next), [saved.manifest.id, saved.manifest.id]);
  });

  await t.test('a storage that shares blocks with an image goes on from what it has shared', async (t) => {
    const both = ['local', 'reflink'];
    const before = await usedMiB(lab, reflink);
    const parent = await backUp(t, agent, machine, 'live', both);
    const taken = (await usedMiB(lab, reflink)) - before;
    const [read, shared] = parent.manifest.volumes;
    const needed = (read?.storedBytes ?? 0) + (parent.manifest.memory?.sizeBytes ?? 0);
    const mostMiB = (needed + (shared?.storedBytes ?? 0) / 2) / 1024 / 1024;
    t.ok(taken < mostMiB, `${taken} MiB for one volume that is shared and one that is not, of ${mostMiB}`);
    await write(machine);
    await machine.pauseWriter();
    const backup = await backUp(t, agent, machine, 'live', both);
    const there = await agent.latest(machine.name, reflink);
    t.same([readsOf(backup), readsOf(there)], [readsOf(there), [parent.manifest.id, parent.manifest.id]]);
    await requireSameContent(t, lab, there, machine);
    await machine.continueWriter();
    t.match((await agent.ask({ kind: 'verify', backup: backup.manifest.id })).result, { ok: true });
  });
});
