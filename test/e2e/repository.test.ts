import path from 'node:path';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { type AgentResult, type Lab, type LabAgent, type LabMachine, startLab } from '../lab/lab.ts';

const storageSchema = z.object({ name: z.string(), directory: z.string() });
const backupSchema = z.looseObject({
  id: z.string(),
  mode: z.string(),
  storages: z.array(storageSchema),
  volumes: z.array(z.looseObject({ read: z.string() })),
});
type Backup = z.infer<typeof backupSchema>;

const targets = ['vda', 'vdb'] as const;

function requireDone(test: Test, result: AgentResult): void {
  test.equal(result.exitCode, 0, `${result.stdout}\n${result.stderr}`);
}

void t.test('a repository holds what a directory holds, of every mode', async (t) => {
  await using lab: Lab = await startLab();
  const vault = path.join(lab.root, 'vault');
  const keyFile = path.join(lab.root, 'vault.key');
  const local = path.join(lab.root, 'local');
  const storages = {
    // The first one is what show tells of.
    vault: { kind: 'repository', url: `file://${vault}`, keyFile },
    local: { kind: 'directory', path: local },
  };
  const agent: LabAgent = await lab.installAgent({ storages });
  await lab.run('mkdir', [local]);
  const machine: LabMachine = await lab.createMachine({
    name: 'sp-vault',
    memoryMiB: 96,
    volumes: targets.map((target) => ({ target, prefillMiB: 8 })),
  });
  await machine.waitUntilWriting({ rounds: 20 });

  await t.test('which is made once, with a key file and a recovery key', async (t) => {
    const before = await agent.run(['backup', 'sp-vault', '--mode', 'disk', '--json']);
    t.match(
      before,
      { exitCode: 4, stderr: /REPOSITORY_NOT_FOUND.*storage init vault/ },
      'nothing is backed up into what is not there',
    );
    const listed = await agent.run(['storage', 'list']);
    t.match(
      listed,
      { exitCode: 4, stderr: /^REPOSITORY_NOT_FOUND: storage vault: .*\nhint: / },
      'and why it is not usable',
    );
    const made = await agent.run(['storage', 'init', 'vault', '--json']);
    requireDone(t, made);
    t.match(made.json(), { keyFile, keyFileMade: true, recoveryKey: /^([0-9A-Z]{4}-){13}[0-9A-Z]{4}$/ });
    t.equal((await lab.run('stat', ['-c', '%a', keyFile])).stdout.trim(), '600');
    const { recoveryKey } = z.looseObject({ recoveryKey: z.string() }).parse(made.json());
    await lab.run('rm', [keyFile]);
    t.match(await agent.run(['storage', 'show', 'vault']), { exitCode: 2, stderr: /--recover/ });
    const recovered = await agent.run(['storage', 'keys', 'vault', '--recover'], {
      input: `${recoveryKey}\n`,
    });
    requireDone(t, recovered);
    t.match(recovered.stdout, `storage vault opens again with ${keyFile}, which was made (key slot `);
    t.match(recovered.stderr, /the key file that this host had before still opens it.*--remove [0-9a-f]{16}/);
    requireDone(t, await agent.run(['storage', 'show', 'vault']));
    const again = await agent.run(['storage', 'init', 'vault', '--json']);
    t.match(again, { exitCode: 8, stderr: /REPOSITORY_EXISTS/ });
    t.match((await agent.run(['storage', 'list', '--json'])).json(), {
      storages: [
        { name: 'vault', kind: 'repository', ok: true },
        { name: 'local', kind: 'directory', ok: true },
      ],
    });
  });

  const made: Backup[] = [];
  const reads: string[] = [];
  for (const mode of ['disk', 'disk', 'live', 'save', 'disk'] as const) {
    await t.test(`mode ${mode}: both storages hold the same instant`, async (t) => {
      await machine.waitUntilWriting({ rounds: 20 });
      const result = await agent.run(['backup', 'sp-vault', '--mode', mode, '--json']);
      requireDone(t, result);
      const backup = backupSchema.parse(result.json());
      t.same(backup.storages.map(({ name }) => name).toSorted(), ['local', 'vault']);
      const to = path.join(lab.root, `out-${made.length}`);
      await lab.run('mkdir', [to]);
      const only = await agent.run([
        'restore',
        backup.id,
        '--storage',
        'vault',
        '--to',
        to,
        '--yes',
        '--json',
      ]);
      requireDone(t, only);
      const stored = backup.storages.find(({ name }) => name === 'local')?.directory ?? '';
      const names = (await lab.run('ls', [stored])).stdout.split('\n');
      for (const target of targets) {
        const artifact = names.find((name) => name.includes(`-${target}.qcow2`) && !name.endsWith('.sums'));
        const restored = (await lab.run('find', [to, '-name', `*${target}*`])).stdout.trim();
        const compared = await lab.run(
          'qemu-img',
          ['compare', '-f', 'qcow2', '-F', 'qcow2', path.join(stored, artifact ?? ''), restored],
          { check: false },
        );
        t.equal(compared.exitCode, 0, `${target}: ${compared.stdout}${compared.stderr}`);
      }
      const state = names.find((name) => name.includes('.state.'));
      t.equal(state !== undefined, mode === 'live' || mode === 'save', 'memory where the mode has it');
      if (state !== undefined)
        await lab.run('cmp', [path.join(stored, state), path.join(to, 'sp-vault.state')]);
      made.push(backup);
      reads.push(backup.volumes.map(({ read }) => read).join(' '));
    });
  }

  t.same(reads, [
    'full full',
    'increment increment',
    'increment increment',
    'full full',
    'increment increment',
  ]);

  await t.test('every byte of it is as it was stored', async (t) => {
    requireDone(t, await agent.run(['verify', '--all', '--data', '--json']));
    const checked = await agent.run(['storage', 'check', 'vault', '--data', '--json']);
    requireDone(t, checked);
    t.match(checked.json(), { ok: true, data: true, damagedPacks: [] });
    t.match((await agent.run(['storage', 'show', 'vault', '--json'])).json(), {
      backups: made.length,
      machines: [{ name: 'sp-vault', backups: made.length }],
      repository: { openSessions: 0 },
    });
  });

  await t.test('a second repository gets all of them, and keeps them when the first is lost', async (t) => {
    const second = {
      kind: 'repository',
      url: `file://${lab.root}/second`,
      keyFile: `${lab.root}/second.key`,
    };
    await agent.configure({ storages: { ...storages, second } });
    requireDone(t, await agent.run(['storage', 'init', 'second', '--no-recovery-key', '--json']));
    const replicate = ['replicate', '--from', 'vault', '--to', 'second', '--json'];
    const copied = await agent.run(replicate);
    requireDone(t, copied);
    t.equal(copied.stdout.trim().split('\n').length, made.length);
    t.match(await agent.run(replicate), { exitCode: 0, stdout: '' }, 'nothing is copied twice');
    const checked = await agent.run(['storage', 'check', 'second', '--data', '--json']);
    t.match(checked.json(), { ok: true, backups: made.map(() => ({ problems: [] })) });
    const [one] = made;
    const to = path.join(lab.root, 'from-second');
    await lab.run('mkdir', [to]);
    requireDone(t, await agent.run(['restore', one?.id ?? '', '--storage', 'second', '--to', to, '--yes']));
    await agent.configure({ storages });
  });

  await t.test('one copy of a backup is deleted, and the other is left', async (t) => {
    const id = made.find(({ mode }) => mode === 'live')?.id ?? '';
    const one = ['delete', id, '--storage', 'local', '--yes'];
    const deleted = await agent.run(one);
    requireDone(t, deleted);
    t.notMatch(deleted.stdout, /^ {2}vault:/m);
    t.match((await agent.run(['show', id, '--json'])).json(), { storages: [{ name: 'vault' }] });
    t.match(await agent.run(['verify', id, '--storage', 'local']), {
      exitCode: 4,
      stderr: /no copy in local/,
    });
    t.match(await agent.run(one), { exitCode: 4, stderr: /BACKUP_NOT_FOUND: .*no copy in local/ });
  });

  await t.test('the machine is resumed from it in place, with the memory of then', async (t) => {
    const before = await machine.writerStatus();
    const live = made.find(({ mode }) => mode === 'live');
    requireDone(t, await agent.run(['restore', live?.id ?? '', '--in-place', '--yes', '--json']));
    const now = await machine.waitUntilWriting({ rounds: 5 });
    t.equal(now.runId, before.runId, 'it is the run of then');
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, readErrors: 0 });
  });

  await t.test('and as a new machine, whose memory is given another definition', async (t) => {
    const save = made.find(({ mode }) => mode === 'save');
    await lab.run('rm', ['-r', save?.storages.find(({ name }) => name === 'local')?.directory ?? '/none']);
    const to = path.join(lab.root, 'twin');
    await lab.run('mkdir', [to]);
    requireDone(
      t,
      await agent.run(['restore', save?.id ?? '', '--as', 'sp-twin', '--to', to, '--yes', '--json']),
    );
    t.match(await lab.virsh('domstate', 'sp-twin'), /running/);
    await lab.virsh('destroy', 'sp-twin');
    await lab.virsh('undefine', 'sp-twin', '--nvram');
  });

  await t.test('a machine runs on it at once, and is local in the end', async (t) => {
    const disk = made.findLast(({ mode }) => mode === 'disk');
    await lab.run('rm', ['-r', disk?.storages.find(({ name }) => name === 'local')?.directory ?? '/none']);
    requireDone(
      t,
      await agent.run(['restore', disk?.id ?? '', '--in-place', '--instant', '--yes', '--json']),
    );
    const now = await machine.waitUntilWriting({ rounds: 5 });
    t.equal(now.writeErrors, 0);
    t.match(await machine.verifyFromInside(), { missing: 0, torn: 0, readErrors: 0 });
    for (const { path: image } of machine.volumes)
      t.notMatch(
        (await lab.run('qemu-img', ['info', '-U', image])).stdout,
        /backing file/,
        'it stands alone',
      );
    const servers = await lab.run('pgrep', ['-fc', 'serveVolume'], { check: false });
    t.equal(servers.stdout.trim(), '0', 'nobody serves it any more');
  });

  await t.test('agent and server that are killed meanwhile are followed by new ones', async (t) => {
    const kept = made.at(-1)?.id ?? '';
    const how = ['--as', 'sp-cut', '--to', lab.root, '--instant', '--start', 'boot', '--yes'];
    const crashed = await agent.run(['restore', kept, ...how], {
      env: { STILLPOINT_TEST_CRASH_AT: 'restore/before:pull' },
    });
    t.not(crashed.exitCode, 0, 'the agent died');
    t.match(await lab.virsh('domstate', 'sp-cut'), /running/);
    await lab.run('pkill', ['-9', '-f', 'serveVolume.*/vda']);
    const recovered = await agent.run(['agent', '--once']);
    requireDone(t, recovered);
    t.match(await lab.virsh('domstate', 'sp-cut'), /running/);
    const images = await lab.virsh('domblklist', 'sp-cut');
    for (const image of images.match(/\/\S+/g) ?? [])
      t.notMatch(
        (await lab.run('qemu-img', ['info', '-U', image])).stdout,
        /backing file/,
        'it stands alone',
      );
    t.equal(images.match(/\/\S+/g)?.length, targets.length);
    await lab.virsh('destroy', 'sp-cut');
    await lab.virsh('undefine', 'sp-cut');
  });

  await t.test('it is started in isolation, and the result is kept with it', async (t) => {
    const kept = made.at(-1)?.id ?? '';
    const verified = await agent.run([
      'verify',
      kept,
      '--boot',
      '--expect',
      'writer:',
      '--timeout',
      '120',
      '--json',
    ]);
    requireDone(t, verified);
    t.match((await agent.run(['list', '--json'])).stdout, /"verified":\{[^}]*"ok":true/);
  });

  await t.test('what no backup needs any more is freed, and nothing else', async (t) => {
    const kept = made.at(-1)?.id ?? '';
    for (const { id } of made)
      if (id !== kept) requireDone(t, await agent.run(['delete', id, '--yes', '--json']));
    const collected = await agent.run(['storage', 'gc', 'vault', '--json']);
    requireDone(t, collected);
    t.match(collected.json(), { waitingFor: [] });
    const { packsDeleted } = z.looseObject({ packsDeleted: z.number() }).parse(collected.json());
    t.ok(packsDeleted > 0, 'the memory states at least');
    requireDone(t, await agent.run(['verify', kept, '--data', '--json']));
  });
});
