import { stat } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { startLab, type Lab, type LabMachine, type WriterStatus } from '../lab/lab.ts';
import { keepSecret } from '../secrets.ts';
import {
  artifact,
  blockOf,
  digestOf,
  ownersView,
  requireFinished,
  requireNothingLost,
  requireWriterWhole,
  type StoredBackup,
  TestAgent,
  witness,
} from './support.ts';

/** What the host's clock may differ from the guest's in, beside the measured offset: scheduling, TCG, drift. */
const clockToleranceMs = 100;
const regionMiB = 40;
const twoVolumes = [{ target: 'vda' }, { target: 'vdb' }];

/** Host time minus guest time, from the quickest of some questions. */
async function clockOffsetMs(machine: LabMachine): Promise<number> {
  let best = { tookMs: Number.POSITIVE_INFINITY, offsetMs: 0 };
  for (let question = 0; question < 15; question += 1) {
    const askedAt = Date.now();
    const { wallMs } = await machine.writerStatus();
    const tookMs = Date.now() - askedAt;
    if (tookMs < best.tookMs) best = { tookMs, offsetMs: askedAt + tookMs / 2 - wallMs };
  }
  return best.offsetMs;
}

/** The frozen volumes are whole, of the run, and no further apart than one write; gives their last sequences. */
async function requireFrozenWhole(
  t: Test,
  lab: Lab,
  backup: StoredBackup,
  runId: string,
): Promise<readonly [number, number]> {
  const last: number[] = [];
  for (const { target } of twoVolumes) {
    const disk = await lab.readDisk(artifact(backup, target), { regionMiB });
    t.match(disk, { runId, missing: [], torn: 0 }, `${target} is of this run, none missing, none torn`);
    last.push(disk.highestSequence);
  }
  const [vda = 0, vdb = 0] = last;
  t.ok(vda > 0 && (vda === vdb || vda === vdb + 1), `vda ends with ${vda}, vdb with ${vdb}: at one instant`);
  return [vda, vdb];
}

/**
 * The guest went on exactly behind the last frozen write: it wrote the next one, and did not write the last one
 * again (each write is stamped with its time, so a second one would differ).
 */
async function requireGoesOnBehind(
  t: Test,
  lab: Lab,
  machine: LabMachine,
  backup: StoredBackup,
  last: readonly [number, number],
  now: WriterStatus,
): Promise<void> {
  for (const [index, { target }] of twoVolumes.entries()) {
    const { ringBlocks, sequence } = now.disks[index] ?? { ringBlocks: 1, sequence: 0 };
    const end = last[index] ?? 0;
    t.ok(
      sequence > end && sequence - end < ringBlocks - 1,
      `${target}: the ring has not come round since T1 (${sequence - end})`,
    );
    const image = machine.imagePath(target);
    const frozen = await blockOf(lab, artifact(backup, target), end, ringBlocks);
    t.equal(
      (await blockOf(lab, image, end, ringBlocks)).sha256,
      frozen.sha256,
      `${target}: ${end} was not written again`,
    );
    const next = await blockOf(lab, image, end + 1, ringBlocks);
    t.equal(next.sequence, end + 1, `${target}: the next write is ${end + 1}`);
    t.equal(next.runId, now.runId);
  }
  t.match(await machine.verifyFromInside(), { runId: now.runId, missing: 0, torn: 0, newer: 0 });
}

void t.test('a backup under continuous writing to two volumes', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine(
    { name: 'sp-sequence', regionMiB, volumes: twoVolumes },
    { start: false },
  );
  await lab.run('chown', ['1234:2345', machine.imagePath()]);
  await lab.run('chmod', ['0640', machine.imagePath()]);
  await machine.start();

  for (const rate of [200, 0]) {
    await t.test(
      `ends where the memory goes on, at ${rate === 0 ? 'full speed' : `${rate} rounds a second`}`,
      async (t) => {
        await machine.command(`rate ${rate}`);
        await machine.continueWriter();
        const whole = await witness(lab, machine);
        const offsetBeforeMs = await clockOffsetMs(machine);
        const answer = await agent.backup(machine);
        const offsetAfterMs = await clockOffsetMs(machine);
        const paused = await machine.pauseWriter();
        requireFinished(t, answer);

        const backup = await agent.latest(machine.name);
        const last = await requireFrozenWhole(t, lab, backup, paused.runId);
        await requireGoesOnBehind(t, lab, machine, backup, last, paused);
        await machine.continueWriter();
        await requireNothingLost(t, lab, agent, whole);

        const { ringBlocks } = paused.disks[0] ?? { ringBlocks: 1 };
        const t1Ms = Date.parse(backup.manifest.pointInTime);
        const lastMs =
          (await blockOf(lab, artifact(backup, 'vda'), last[0], ringBlocks)).wallMs + offsetBeforeMs;
        const pauseMs = backup.manifest.pauseMs ?? -1;
        const lagMs = offsetAfterMs - offsetBeforeMs;
        t.comment(
          `T1 is ${Math.round(t1Ms - lastMs)} ms after the last write; pause ${Math.round(pauseMs)} ms, the guest lost ${Math.round(lagMs)} ms`,
        );
        t.ok(t1Ms >= lastMs - clockToleranceMs, 'T1 is not before the last frozen write');
        t.ok(t1Ms <= lastMs + pauseMs, 'T1 is before the first write that is not frozen');
        t.ok(Math.abs(lagMs - pauseMs) <= 2 * clockToleranceMs, 'the recorded pause is what the guest saw');
      },
    );

    await t.test(
      `and restored in place, goes on from there, at ${rate === 0 ? 'full speed' : `${rate} rounds a second`}`,
      async (t) => {
        const backup = await agent.latest(machine.name);
        const { runId } = await machine.waitUntilWriting({ rounds: 50 });
        const last = await requireFrozenWhole(t, lab, backup, runId);
        requireFinished(t, await agent.restore('sp-sequence@latest', { inPlace: true }));
        const paused = await machine.pauseWriter();
        t.equal(paused.runId, runId, 'it is the same run');
        await requireGoesOnBehind(t, lab, machine, backup, last, paused);
      },
    );
  }

  await t.test('keeps the owner, group and mode of the image', async (t) => {
    const { manifest } = await agent.latest(machine.name);
    t.same(manifest.volumes[0]?.owner, { uid: 1234, gid: 2345, mode: 0o640 }, 'in the manifest');
    await machine.continueWriter();
    requireFinished(t, await agent.backup(machine));
    const stored = await stat(artifact(await agent.latest(machine.name), 'vda'));
    t.same([stored.uid, stored.gid, stored.mode & 0o7777], [1234, 2345, 0o640], 'in the storage');
    await machine.destroy();
    const image = await stat(machine.imagePath());
    t.same(
      [image.uid, image.gid, image.mode & 0o7777],
      [1234, 2345, 0o640],
      'on the host, when the machine is off',
    );
  });
});

void t.test('a backup of a machine that its owner has suspended', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({ name: 'sp-suspended', regionMiB, volumes: twoVolumes });
  const running = await machine.waitUntilWriting({ rounds: 50 });
  await lab.virsh('autostart', machine.uuid);
  await machine.suspend();
  const before = await ownersView(lab, machine);
  t.equal(before.state, 'paused');
  requireFinished(t, await agent.backup(machine));
  t.same(await ownersView(lab, machine), before, 'it is suspended, and as it was');
  const backup = await agent.latest(machine.name);
  t.match(backup.manifest, { pauseMs: null, memory: { running: false } });
  const last = await requireFrozenWhole(t, lab, backup, running.runId);
  await machine.resume();
  await machine.waitUntilWriting({ after: running.sequence, rounds: 20 });
  await requireGoesOnBehind(t, lab, machine, backup, last, await machine.pauseWriter());

  requireFinished(t, await agent.restore('sp-suspended@latest', { inPlace: true }));
  t.match(await machine.state(), /^paused/, 'restored, it is suspended again');
  await machine.resume();
  await machine.waitUntilWriting({ after: Math.max(...last), rounds: 20 });
  await requireGoesOnBehind(t, lab, machine, backup, last, await machine.pauseWriter());
});

void t.test('a backup of a machine on a shared base', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const pulling = await TestAgent.install(lab, {
    name: 'pulling',
    rest: { policies: { default: { merge: { includeSharedBase: true } } } },
  });
  const template = path.join(lab.imagesDir, 'template.qcow2');
  await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', template, '64M']);
  await lab.run('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 0x5a 40M 16M', template]);
  const digest = await digestOf(lab, template);
  const backing = { path: template, format: 'qcow2' } as const;
  const machine = await lab.createMachine({ name: 'sp-based', volumes: [{ target: 'vda', backing }] });
  const sibling = await lab.createMachine({ name: 'sp-sibling', volumes: [{ target: 'vda', backing }] });
  const witnesses = [await witness(lab, machine), await witness(lab, sibling)] as const;
  await machine.pauseWriter();

  await t.test('leaves the base alone and is complete without it', async (t) => {
    requireFinished(t, await agent.backup(machine));
    t.equal(await digestOf(lab, template), digest, 'the base has not changed');
    const image = artifact(await agent.latest(machine.name), 'vda');
    t.notMatch(
      (await lab.run('qemu-img', ['info', image])).stdout,
      'backing file',
      'the artifact stands alone',
    );
    await lab.run('qemu-img', ['compare', '-U', image, machine.imagePath()]);
    await lab.run('qemu-io', ['-r', '-f', 'qcow2', '-c', 'read -q -P 0x5a 40M 16M', image]);
    await machine.continueWriter();
    for (const each of witnesses) await requireNothingLost(t, lab, agent, each);
    t.equal((await ownersView(lab, machine)).images[0]?.chain.length, 2, 'the machine still stands on it');
  });

  await t.test('pulls the base into the machine when the policy says so', async (t) => {
    await machine.pauseWriter();
    requireFinished(t, await pulling.backup(machine));
    t.equal(await digestOf(lab, template), digest, 'the base has not changed');
    t.same(
      (await ownersView(lab, machine)).images[0]?.chain,
      [machine.imagePath()],
      'the machine stands alone',
    );
    const image = artifact(await pulling.latest(machine.name), 'vda');
    await lab.run('qemu-img', ['compare', '-U', image, machine.imagePath()]);
    await machine.continueWriter();
    const { writer } = witnesses[0];
    if (writer !== undefined) await requireWriterWhole(t, machine, writer);
    await requireNothingLost(t, lab, pulling, witnesses[1]);
  });
});

void t.test('a backup of a machine whose images are spread', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const other = await lab.loopFilesystem('ext4', 400);
  await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', `${other}/real.qcow2`, '64M']);
  const link = path.join(lab.imagesDir, 'link.qcow2');
  await lab.run('ln', ['-s', `${other}/real.qcow2`, link]);
  const volumes = [
    { target: 'vda' },
    { target: 'vdb', path: `${other}/second.qcow2` },
    { target: 'vdc', path: link },
  ];
  const machine = await lab.createMachine({ name: 'sp-spread', volumes });
  const whole = await witness(lab, machine);

  await t.test('over two file systems and a symbolic link is whole', async (t) => {
    requireFinished(t, await agent.backup(machine));
    await requireNothingLost(t, lab, agent, whole);
    t.equal((await lab.run('readlink', [link])).stdout, `${other}/real.qcow2`, 'the link is a link');
    const backup = await agent.latest(machine.name);
    const ends = [];
    for (const { target } of volumes) {
      const disk = await lab.readDisk(artifact(backup, target));
      t.match(disk, { runId: whole.writer?.runId, missing: [], torn: 0 });
      ends.push(disk.highestSequence);
    }
    t.ok(Math.max(...ends) - Math.min(...ends) <= 1, `all at one instant: ${ends.join(', ')}`);
  });

  await t.test('restores in place there', async (t) => {
    requireFinished(t, await agent.restore('sp-spread@latest', { inPlace: true }));
    if (whole.writer !== undefined) await requireWriterWhole(t, machine, { ...whole.writer, sequence: 0 });
  });
});

void t.test('a machine whose persistent definition says where its chain ends', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({ name: 'sp-says' }, { start: false });
  const file = path.join(lab.root, 'tmp/says.xml');
  const plain = await machine.xml('inactive');
  await lab.run('tee', [file], {
    input: plain.replace(/(<source file='[^']*'\/>)(\s*)(<target dev='vda')/, '$1$2<backingStore/>$2$3'),
  });
  await lab.virsh('define', file);
  await machine.start();
  const whole = await witness(lab, machine);
  t.match(whole.before.persistentXml, '<backingStore/>');
  requireFinished(t, await agent.backup(machine));
  // docs/decisions/0006: libvirt then reads the chain from the headers, which is always right.
  const persistentXml = whole.before.persistentXml.replace(/\s*<backingStore\/>/, '');
  await requireNothingLost(t, lab, agent, whole, { persistentXml });

  t.comment('somebody boots it while it stands on two images');
  const again = await witness(lab, machine);
  await lab.run('tee', [file], { input: whole.before.persistentXml });
  await lab.virsh('define', file);
  t.match((await agent.backup(machine, { crashAt: 'backup/before:merge' })).log, 'killed');
  await machine.destroy();
  await machine.start();
  const booted = await machine.waitUntilWriting({ rounds: 5 });
  t.ok(booted.firstSequence > (again.writer?.sequence ?? 0), 'it finds all that it had written');
  await agent.ask({ kind: 'recover' });
  await requireNothingLost(t, lab, agent, { ...again, writer: booted }, { persistentXml });
});

void t.test('a machine with an odd name and a password', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab, { agent: { logLevel: 'trace' } });
  const name = 'sp-..Ünï cödé %41 ..';
  const password = keepSecret('VNC password', 'gEh3im!x');
  const vnc = `<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='${password}'/>`;
  const machine = await lab.createMachine({ name, extraDevicesXml: vnc });
  const whole = await witness(lab, machine);
  const answer = await agent.backup(machine);
  requireFinished(t, answer);
  await requireNothingLost(t, lab, agent, whole);
  const backup = await agent.latest(name);
  t.equal(backup.manifest.machine.name, name);
  t.match(await machine.xml(), `passwd='${password}'`, 'it keeps its password');

  await t.test('the password is in the memory state and nowhere else', async (t) => {
    const state = path.join(backup.directory, backup.manifest.memory?.file ?? '');
    const found = await lab.run('grep', ['-rlF', password, path.dirname(agent.setup.configFile)], {
      check: false,
    });
    t.same(
      found.stdout.split('\n').filter((line) => line !== ''),
      [state],
    );
    t.equal((await stat(state)).mode & 0o7777, 0o600, 'which root alone can read');
    t.notMatch(answer.log + answer.stdout, password);
  });

  await t.test('it comes back with its password, in place and as another machine', async (t) => {
    const restored = await agent.restore(backup.manifest.id, { inPlace: true });
    requireFinished(t, restored);
    t.match(await machine.xml('inactive'), `passwd='${password}'`);
    t.equal((await machine.writerStatus()).runId, whole.writer?.runId);
    requireFinished(t, await agent.restore(backup.manifest.id, { as: 'sp-two words ..' }));
    const second = await lab.virsh('dumpxml', '--security-info', 'sp-two words ..');
    t.match(second, `passwd='${password}'`);
    t.notMatch(restored.log + restored.stdout, password);
    const found = await lab.run('grep', ['-rlF', password, agent.setup.stateDir], { check: false });
    t.equal(found.stdout, '', 'the journal does not know it');
  });
});
