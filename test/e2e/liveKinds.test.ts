import path from 'node:path';
import t from 'tap';
import { startLab } from '../lab/lab.ts';
import { artifact, digestOf, requireFinished, requireNothingLost, TestAgent, witness } from './support.ts';

void t.test('mode "live" with a template, a symbolic link, two file systems and UEFI', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const template = path.join(lab.imagesDir, 'template.qcow2');
  await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', template, '64M']);
  await lab.run('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 0x5a 40M 16M', template]);
  const digest = await digestOf(lab, template);
  const other = await lab.loopFilesystem('ext4', 400);
  await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', `${other}/real.qcow2`, '64M']);
  const link = path.join(lab.imagesDir, 'link.qcow2');
  await lab.run('ln', ['-s', `${other}/real.qcow2`, link]);
  const volumes = [
    { target: 'vda', backing: { path: template, format: 'qcow2' as const } },
    { target: 'vdb', path: link },
  ];
  const machine = await lab.createMachine({ name: 'sp-kinds', uefi: true, volumes });
  const sibling = await lab.createMachine({ name: 'sp-sibling', volumes: volumes.slice(0, 1) });
  const witnesses = [await witness(lab, machine), await witness(lab, sibling)] as const;

  requireFinished(t, await agent.backup(machine, { mode: 'live' }));
  for (const each of witnesses) await requireNothingLost(t, lab, agent, each);
  t.equal(await digestOf(lab, template), digest, 'the template was not written to');
  t.equal((await lab.run('readlink', [link])).stdout, `${other}/real.qcow2`, 'the link is a link');
  const backup = await agent.latest(machine.name);
  const image = artifact(backup, 'vda');
  t.notMatch(
    (await lab.run('qemu-img', ['info', image])).stdout,
    'backing file',
    'the artifact stands alone',
  );
  await lab.run('qemu-io', ['-r', '-f', 'qcow2', '-c', 'read -q -P 0x5a 40M 16M', image]);
  t.match(backup.manifest.extras, [{ kind: 'nvram' }]);

  requireFinished(t, await agent.restore('sp-kinds@latest', { as: 'sp-copy', start: 'resume' }));
  const copy = await lab.findMachine('sp-copy');
  t.equal((await copy.waitUntilWriting()).runId, witnesses[0].writer?.runId, 'its memory came back');
  t.match(await copy.verifyFromInside(), { missing: 0, torn: 0, newer: 0, readErrors: 0 });
});
