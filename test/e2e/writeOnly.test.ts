import path from 'node:path';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { type AgentResult, type Lab, type LabAgent, type LabMachine, startLab } from '../lab/lab.ts';

const backupSchema = z.looseObject({
  id: z.string(),
  storages: z.array(z.object({ name: z.string(), directory: z.string() })),
  volumes: z.array(z.looseObject({ read: z.string() })),
});
type Backup = z.infer<typeof backupSchema>;

function requireDone(test: Test, result: AgentResult): void {
  test.equal(result.exitCode, 0, `${result.stdout}\n${result.stderr}`);
}

void t.test('a host that may only write backs its machines up, and others restore them', async (t) => {
  await using lab: Lab = await startLab();
  const local = path.join(lab.root, 'local');
  const storagesWith = (keyFile: string) => ({
    vault: { kind: 'repository', url: `file://${lab.root}/vault`, keyFile: path.join(lab.root, keyFile) },
    local: { kind: 'directory', path: local },
  });
  const reading = { storages: storagesWith('reader.key') };
  const writing = { storages: storagesWith('writer.key') };
  const agent: LabAgent = await lab.installAgent(reading);
  await lab.run('mkdir', [local]);
  requireDone(t, await agent.run(['storage', 'init', 'vault', '--json']));
  const writerKey = path.join(lab.root, 'writer.key');
  const add = ['storage', 'keys', 'vault', '--add-file', writerKey, '--write-only'];
  const added = await agent.run(add);
  requireDone(t, added);
  t.match(added.stdout, /keyFile +write only/);
  const machine: LabMachine = await lab.createMachine({
    name: 'sp-writer',
    memoryMiB: 96,
    volumes: [{ target: 'vda', prefillMiB: 8 }],
  });
  await agent.configure(writing);

  const made: Backup[] = [];
  for (const mode of ['disk', 'disk', 'live'] as const)
    await t.test(`it makes backups of mode ${mode}, increments where it can`, async (t) => {
      await machine.waitUntilWriting({ rounds: 20 });
      const result = await agent.run(['backup', 'sp-writer', '--mode', mode, '--json']);
      requireDone(t, result);
      made.push(backupSchema.parse(result.json()));
    });
  t.same(
    made.map(({ volumes }) => volumes[0]?.read),
    ['full', 'increment', 'increment'],
  );
  const live = made.at(-1);
  if (live === undefined) throw new Error('no backup was made');

  await t.test('it copies into the repository what it has elsewhere', async (t) => {
    await agent.configure({ storages: { local: writing.storages.local } });
    const elsewhere = await agent.run(['backup', 'sp-writer', '--mode', 'disk', '--json']);
    requireDone(t, elsewhere);
    made.push(backupSchema.parse(elsewhere.json()));
    await agent.configure(writing);
    const copied = await agent.run(['replicate', '--from', 'local', '--to', 'vault', '--json']);
    requireDone(t, copied);
    t.equal(copied.stdout.trim().split('\n').length, 1);
  });

  await t.test('it restores nothing from there, and says who can', async (t) => {
    const to = path.join(lab.root, 'none');
    const refused = { exitCode: 8, stderr: /^KEY_WRITE_ONLY: .*\nhint: .*another storage/m };
    for (const words of [
      ['restore', live.id, '--storage', 'vault', '--to', to, '--yes'],
      ['restore', live.id, '--storage', 'vault', '--in-place', '--yes'],
      ['restore', live.id, '--storage', 'vault', '--in-place', '--instant', '--yes'],
      ['restore', live.id, '--storage', 'vault', '--files', '/etc/hostname', '--to', to, '--yes'],
      ['storage', 'mount', live.id, to, '--storage', 'vault'],
      ['verify', '--all', '--storage', 'vault', '--data'],
      ['storage', 'check', 'vault', '--data'],
      ['storage', 'gc', 'vault'],
    ])
      t.match(await agent.run(words), refused, words.join(' '));
    t.match(await lab.virsh('domstate', 'sp-writer'), /running/);
    requireDone(t, await agent.run(['storage', 'check', 'vault']));
    // It takes the copy that it can read, without being told.
    requireDone(t, await agent.run(['restore', live.id, '--to', to, '--yes']));
  });

  await t.test('another host reads every byte of them as it was', async (t) => {
    await agent.configure(reading);
    const checked = await agent.run(['storage', 'check', 'vault', '--data', '--json']);
    requireDone(t, checked);
    t.match(checked.json(), { ok: true, damagedPacks: [], backups: made.map(() => ({ problems: [] })) });
    for (const [number, backup] of made.entries()) {
      const to = path.join(lab.root, `out-${number}`);
      requireDone(t, await agent.run(['restore', backup.id, '--storage', 'vault', '--to', to, '--yes']));
      const restored = (await lab.run('find', [to, '-name', '*vda*'])).stdout.trim();
      const stored = backup.storages.find(({ name }) => name === 'local')?.directory ?? '';
      const found = await lab.run('find', [stored, '-name', '*-vda.qcow2*', '!', '-name', '*.sums']);
      const [artifact = ''] = found.stdout.split('\n');
      const images = ['-f', 'qcow2', '-F', 'qcow2', artifact, restored];
      const compared = await lab.run('qemu-img', ['compare', ...images], { check: false });
      t.equal(compared.exitCode, 0, `${compared.stdout}${compared.stderr}`);
    }
  });

  await t.test('and goes back to one, with the memory of then', async (t) => {
    const before = await machine.writerStatus();
    requireDone(t, await agent.run(['restore', live.id, '--storage', 'vault', '--in-place', '--yes']));
    const now = await machine.waitUntilWriting({ rounds: 5 });
    t.equal(now.runId, before.runId);
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, readErrors: 0 });
  });
});
