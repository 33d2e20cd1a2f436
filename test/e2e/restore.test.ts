import { createHash } from 'node:crypto';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { manifestDigest, parseManifest } from '../../storage/manifest.ts';
import { type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import {
  artifact,
  digestOf,
  requireError,
  requireFinished,
  requireNothingLost,
  type StoredBackup,
  TestAgent,
  witness,
} from './support.ts';

const targets = ['vda', 'vdb'] as const;

/** Sequence that the volumes of a backup end with: the lowest of them. */
async function endOf(lab: Lab, backup: StoredBackup): Promise<number> {
  const disks = await Promise.all(targets.map((target) => lab.readDisk(artifact(backup, target))));
  return Math.min(...disks.map((disk) => disk.highestSequence));
}

function tagOf(xml: string, pattern: RegExp): string {
  return pattern.exec(xml)?.[1] ?? '';
}

void t.test('a backup brings the machine back', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({
    name: 'sp-back',
    nic: true,
    volumes: targets.map((target) => ({ target })),
  });
  const first = await machine.waitUntilWriting({ rounds: 50 });
  await lab.virsh('autostart', machine.uuid);
  requireFinished(t, await agent.backup(machine));
  const backup = await agent.latest(machine.name);
  const end = await endOf(lab, backup);

  await t.test('in place, resumed: with the memory of then', async (t) => {
    await machine.waitUntilWriting({ after: end, rounds: 200 });
    requireFinished(t, await agent.restore(backup.manifest.id, { inPlace: true }));
    const now = await machine.waitUntilWriting({ after: end });
    t.equal(now.runId, first.runId);
    const whole = await witness(lab, machine);
    await requireNothingLost(t, lab, agent, whole);
  });

  await t.test('in place, booted: a cold start on the disks of then', async (t) => {
    requireFinished(t, await agent.restore(backup.manifest.id, { inPlace: true, start: 'boot' }));
    const now = await machine.waitUntilWriting({ rounds: 5 });
    t.not(now.runId, first.runId);
    t.ok(
      now.firstSequence - 1 - end <= 1,
      `the guest went on after ${now.firstSequence - 1}, the backup ends with ${end}`,
    );
    await requireNothingLost(t, lab, agent, await witness(lab, machine));
  });

  await t.test('one volume in place: the other one stays, and what was replaced is kept', async (t) => {
    const [vda, vdb] = targets.map((target) => machine.imagePath(target));
    if (vda === undefined || vdb === undefined) throw new Error('two volumes');
    const before = await stat(vda);
    const replaced = await stat(vdb);
    requireFinished(t, await agent.restore(backup.manifest.id, { inPlace: true, volumes: ['vdb'] }));
    t.match(await machine.state(), /^running/, 'it ran, and boots');
    t.equal((await stat(vda)).ino, before.ino);
    await machine.destroy();
    t.equal(
      (await lab.readDisk(vdb)).firstSequence,
      (await lab.readDisk(artifact(backup, 'vdb'))).firstSequence,
    );
    const copies = (await readdir(path.dirname(vdb))).filter((name) =>
      name.startsWith(`${path.basename(vdb)}.replaced-`),
    );
    const inodes = await Promise.all(
      copies.map(async (name) => (await stat(path.join(path.dirname(vdb), name))).ino),
    );
    t.ok(inodes.includes(replaced.ino), 'the image of before is among the safety copies');
    const [whole] = copies.toSorted().slice(-1);
    t.ok(
      (await lab.readDisk(path.join(path.dirname(vdb), whole ?? ''))).highestSequence > end,
      'with what was written since',
    );
    requireError(
      t,
      await agent.restore(backup.manifest.id, { inPlace: true, volumes: ['vdz'] }),
      'VOLUME_UNKNOWN',
    );
    await machine.start();
    await machine.waitUntilWriting({ rounds: 5 });
  });

  await t.test('in place, not started: off, on the disks of then', async (t) => {
    requireFinished(t, await agent.restore(backup.manifest.id, { inPlace: true, start: 'none' }));
    t.match(await machine.state(), /^shut off/);
    t.match(await lab.virsh('dominfo', machine.uuid), /Autostart:\s+enable/);
    for (const target of targets)
      t.equal(await digestOf(lab, machine.imagePath(target)), await digestOf(lab, artifact(backup, target)));
    await requireNothingLost(t, lab, agent, await witness(lab, machine));
  });

  await t.test('after it was undefined and its images were deleted', async (t) => {
    await lab.virsh('undefine', machine.uuid, '--checkpoints-metadata');
    for (const target of targets) await lab.run('rm', [machine.imagePath(target)]);
    requireFinished(t, await agent.restore('sp-back@latest', {}));
    t.equal((await machine.waitUntilWriting({ after: end })).runId, first.runId, 'with its memory');
    t.match(await lab.virsh('dominfo', machine.uuid), /Autostart:\s+enable/, 'with its autostart');
    await requireNothingLost(t, lab, agent, await witness(lab, machine));
  });

  await t.test('as a second machine, beside the first', async (t) => {
    const whole = await witness(lab, machine);
    requireFinished(t, await agent.restore('sp-back@latest', { as: 'sp-second' }));
    const second = await lab.findMachine('sp-second');
    const now = await second.waitUntilWriting({ after: end });
    t.equal(now.runId, first.runId, 'it goes on with the memory of then');
    const [xml, originalXml] = [await second.xml(), await machine.xml()];
    for (const pattern of [
      /<uuid>(.*)<\/uuid>/,
      /<mac address='(.*)'/,
      /<source file='(.*)'/,
      /<channel[\s\S]*?path='(.*)'/,
    ]) {
      t.not(tagOf(xml, pattern), '', `has a ${pattern.source}`);
      t.not(tagOf(xml, pattern), tagOf(originalXml, pattern), 'of its own');
    }
    t.match(
      xml,
      "<link state='down'/>",
      'its guest still uses the addresses of the first: it is disconnected',
    );
    t.match(await lab.virsh('dominfo', 'sp-second'), /Autostart:\s+disable/);
    await requireNothingLost(t, lab, agent, await witness(lab, second));
    await requireNothingLost(t, lab, agent, whole);
    requireError(t, await agent.restore('sp-back@latest', { as: 'sp-second' }), 'NAME_TAKEN');
    await lab.virsh('destroy', second.uuid);
    await lab.virsh('undefine', second.uuid);
    requireError(t, await agent.restore('sp-back@latest', { as: 'sp-second' }), 'PATH_TAKEN');
    await requireNothingLost(t, lab, agent, whole);
    for (const volume of second.volumes) await lab.run('rm', [volume.path]);
  });

  await t.test('as files, from which qemu-img and virsh alone bring it back', async (t) => {
    const whole = await witness(lab, machine);
    const to = path.join(lab.root, 'files');
    await lab.run('mkdir', [to]);
    requireFinished(t, await agent.restore('sp-back@latest', { to }));
    await requireNothingLost(t, lab, agent, whole);
    requireError(t, await agent.restore('sp-back@latest', { to }), 'PATH_TAKEN');
    await lab.virsh('destroy', machine.uuid);
    await lab.virsh('undefine', machine.uuid, '--checkpoints-metadata');
    for (const target of targets) {
      const file = path.join(to, `sp-back-${target}.qcow2`);
      await lab.run('qemu-img', ['check', file]);
      await lab.run('cp', ['--sparse=always', file, machine.imagePath(target)]);
    }
    // docs/RESTORE-BY-HAND.md
    await lab.virsh('define', path.join(to, 'sp-back.xml'));
    await lab.virsh('restore', path.join(to, 'sp-back.state'));
    t.equal((await machine.waitUntilWriting({ after: end })).runId, first.runId);
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, newer: 0 });
  });
});

/** Damages that somebody else did to a backup: what, and how the restore answers. */
const damages: readonly {
  readonly what: string;
  readonly code: string;
  readonly damage: (lab: Lab, backup: StoredBackup) => Promise<unknown>;
}[] = [
  {
    what: 'a truncated volume',
    code: 'BACKUP_DAMAGED',
    damage: (lab, backup) => lab.run('truncate', ['-s', '-65536', artifact(backup, 'vdb')]),
  },
  {
    what: 'a flipped bit in a volume',
    code: 'BACKUP_DAMAGED',
    damage: (lab, backup) => flip(lab, artifact(backup, 'vdb'), 900_000),
  },
  {
    what: 'a missing volume',
    code: 'BACKUP_DAMAGED',
    damage: (lab, backup) => lab.run('rm', [artifact(backup, 'vda')]),
  },
  {
    what: 'a truncated memory state',
    code: 'BACKUP_DAMAGED',
    damage: (lab, backup) => lab.run('truncate', ['-s', '-1', stateOf(backup)]),
  },
  {
    what: 'a flipped bit in the memory state',
    code: 'BACKUP_DAMAGED',
    damage: (lab, backup) => flip(lab, stateOf(backup), 3_000_000),
  },
  {
    what: 'a flipped bit in the definition',
    code: 'BACKUP_DAMAGED',
    damage: (lab, backup) => flip(lab, path.join(backup.directory, backup.manifest.definition.file), 20),
  },
  {
    what: 'a manifest that is no JSON',
    code: 'BACKUP_DAMAGED',
    damage: (lab, backup) => lab.run('truncate', ['-s', '-9', path.join(backup.directory, 'manifest.json')]),
  },
  {
    what: 'a manifest that leads out of its directory',
    code: 'BACKUP_DAMAGED',
    damage: async (lab, backup) => {
      const file = path.join(backup.directory, 'manifest.json');
      const text = await readFile(file, 'utf8');
      const { volumes } = parseManifest(text);
      await lab.run('tee', [file], { input: resealed(text, volumes[0]?.file ?? '', '../../../etc/shadow') });
    },
  },
];

/** A manifest in which something was replaced, with the digest that makes it credible. */
function resealed(text: string, from: string, to: string): string {
  const { manifestSha256: _, ...described } = z.looseObject({}).parse(JSON.parse(text.replace(from, to)));
  return JSON.stringify({ ...described, manifestSha256: manifestDigest(described) });
}

function stateOf(backup: StoredBackup): string {
  return path.join(backup.directory, backup.manifest.memory?.file ?? '');
}

async function flip(lab: Lab, file: string, offset: number): Promise<void> {
  const before = (await readFile(file)).at(offset) ?? 0;
  const octal = (before ^ 1).toString(8).padStart(3, '0');
  await lab.run('dd', [`of=${file}`, 'bs=1', `seek=${offset}`, 'conv=notrunc', 'status=none'], {
    input: String.fromCharCode(Number.parseInt(octal, 8)),
  });
}

void t.test('a restore that cannot be', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({
    name: 'sp-safe',
    volumes: targets.map((target) => ({ target })),
  });
  await machine.waitUntilWriting({ rounds: 50 });
  requireFinished(t, await agent.backup(machine));
  const backup = await agent.latest(machine.name);
  const whole = await witness(lab, machine);
  const kept = path.join(lab.root, 'tmp/kept');
  await lab.run('cp', ['-a', backup.directory, kept]);
  const inodes = () =>
    Promise.all(targets.map(async (target) => (await stat(machine.imagePath(target))).ino));
  const before = await inodes();
  const ids = new Set<string>();

  for (const { what, code, damage } of damages) {
    await t.test(`because of ${what} is refused before anything is touched`, async (t) => {
      await damage(lab, backup);
      const answer = await agent.restore(`sp-safe@${path.basename(backup.directory)}`, { inPlace: true });
      requireError(t, answer, code);
      if (answer.job !== undefined) ids.add(answer.job.id);
      t.same(await inodes(), before, 'the images are the same files');
      await requireNothingLost(t, lab, agent, whole);
      await lab.run('rm', ['-r', backup.directory]);
      await lab.run('cp', ['-a', kept, backup.directory]);
    });
  }

  await t.test('because its memory cannot be loaded puts everything back', async (t) => {
    // Everything is as it was stored, digests too, but QEMU does not understand it.
    const file = path.join(backup.directory, 'manifest.json');
    const text = await readFile(file, 'utf8');
    await lab.run('dd', [
      'if=/dev/urandom',
      `of=${stateOf(backup)}`,
      'bs=64K',
      'seek=4',
      'count=16',
      'conv=notrunc',
      'status=none',
    ]);
    const digest = createHash('sha256')
      .update(await readFile(stateOf(backup)))
      .digest('hex');
    await lab.run('tee', [file], { input: resealed(text, backup.manifest.memory?.sha256 ?? '', digest) });
    const sequence = (await machine.pauseWriter()).sequence;
    requireError(t, await agent.restore('sp-safe@latest', { inPlace: true }), 'CANNOT_START_MACHINE');
    t.same(await inodes(), before, 'the images of before are in their places');
    const now = await machine.waitUntilWriting({ rounds: 5 });
    t.equal(now.firstSequence, sequence + 1, 'the machine runs on the disks that it had, whole');
    await requireNothingLost(t, lab, agent, { ...whole, writer: now });
    requireFinished(t, await agent.restore('sp-safe@latest', { inPlace: true, start: 'boot' }));
    await requireNothingLost(t, lab, agent, {
      ...whole,
      writer: await machine.waitUntilWriting({ rounds: 5 }),
    });
    await lab.run('rm', ['-r', backup.directory]);
    await lab.run('cp', ['-a', kept, backup.directory]);
  });

  await t.test('with its processor on this host boots instead, without its memory', async (t) => {
    // The model is named in the definition and in libvirt's cookie; both names have six letters.
    const state = await readFile(stateOf(backup));
    for (let at = state.indexOf('qemu64'); at >= 0 && at < 65_536; at = state.indexOf('qemu64', at))
      state.write('athlon', at, 'latin1');
    const file = path.join(backup.directory, 'manifest.json');
    const text = await readFile(file, 'utf8');
    await writeFile(stateOf(backup), state);
    const digest = createHash('sha256').update(state).digest('hex');
    await lab.run('tee', [file], { input: resealed(text, backup.manifest.memory?.sha256 ?? '', digest) });
    const answer = await agent.restore('sp-safe@latest', { inPlace: true });
    requireFinished(t, answer);
    t.match(answer.warnings.join(), /cannot offer its processor .*guest CPU doesn't match/);
    await machine.waitUntilWriting({ rounds: 5 });
    await requireNothingLost(t, lab, agent, {
      ...whole,
      writer: await machine.waitUntilWriting({ rounds: 5 }),
    });
    await lab.run('rm', ['-r', backup.directory]);
    await lab.run('cp', ['-a', kept, backup.directory]);
  });

  await t.test('because its file system is too small is refused', async (t) => {
    const small = await lab.smallTmpfs(1);
    const writer = await machine.waitUntilWriting({ rounds: 5 });
    requireError(
      t,
      await agent.restore('sp-safe@latest', { as: 'sp-large', to: small }),
      'NOT_ENOUGH_DISK_SPACE',
    );
    t.equal((await lab.run('find', [small, '-mindepth', '1'])).stdout, '', 'nothing is left there');
    await requireNothingLost(t, lab, agent, { ...whole, writer });
  });

  await t.test('because it does not say what it should become is refused', async (t) => {
    const writer = await machine.waitUntilWriting({ rounds: 5 });
    requireError(t, await agent.restore('sp-safe@latest', {}), 'RESTORE_TARGET_UNCLEAR');
    requireError(
      t,
      await agent.restore('sp-safe@latest', { as: 'sp-x', inPlace: true }),
      'RESTORE_TARGET_UNCLEAR',
    );
    requireError(t, await agent.restore('sp-unknown@latest', { inPlace: true }), 'BACKUP_NOT_FOUND');
    await requireNothingLost(t, lab, agent, { ...whole, writer });
  });
});

void t.test('a machine with UEFI comes back with its NVRAM, and as a second one with its own', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine: LabMachine = await lab.createMachine({ name: 'sp-uefi', uefi: true });
  const whole = await witness(lab, machine);
  requireFinished(t, await agent.backup(machine));
  await requireNothingLost(t, lab, agent, whole);
  const { manifest, directory } = await agent.latest(machine.name);
  t.match(manifest.extras, [{ kind: 'nvram' }]);
  const stored = path.join(directory, manifest.extras[0]?.file ?? '');
  const nvram = tagOf(await machine.xml(), /<nvram[^>]*>(.*)<\/nvram>/);
  t.equal(await digestOf(lab, nvram), await digestOf(lab, stored));

  requireFinished(t, await agent.restore('sp-uefi@latest', { as: 'sp-uefi-two' }));
  const second = await lab.findMachine('sp-uefi-two');
  t.equal((await second.waitUntilWriting()).runId, whole.writer?.runId);
  const own = tagOf(await second.xml(), /<nvram[^>]*>(.*)<\/nvram>/);
  t.not(own, nvram, 'it has an NVRAM file of its own');
  t.equal(await digestOf(lab, own), await digestOf(lab, stored));
  await requireNothingLost(t, lab, agent, whole);

  await machine.destroy();
  await lab.run('rm', [nvram]);
  requireFinished(t, await agent.restore('sp-uefi@latest', { inPlace: true, start: 'boot' }));
  await machine.waitUntilWriting();
  t.equal(tagOf(await machine.xml(), /<nvram[^>]*>(.*)<\/nvram>/), nvram);
});
