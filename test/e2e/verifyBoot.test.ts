import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { eventually, type Lab, startLab } from '../lab/lab.ts';
import {
  requireError,
  requireFinished,
  requireNothingLost,
  type StoredBackup,
  TestAgent,
  witness,
} from './support.ts';

const resultSchema = z.looseObject({
  ok: z.boolean(),
  evidence: z.string().nullable(),
  picture: z.string().nullable(),
  start: z.string(),
  detail: z.string(),
});

/** The last result beside a backup. */
async function resultOf(backup: StoredBackup): Promise<z.infer<typeof resultSchema>> {
  const last = (await readdir(backup.directory))
    .filter((name) => /^verified-.*json$/.test(name))
    .toSorted()
    .at(-1);
  return resultSchema.parse(JSON.parse(await readFile(path.join(backup.directory, last ?? 'none'), 'utf8')));
}

const workFiles = '/var/tmp';

/** Work directories of verifications; another run on this host may have its own there. */
async function workDirectories(): Promise<readonly string[]> {
  return (await readdir(workFiles)).filter((name) => name.startsWith('stillpoint-verify-'));
}

const ofOthers = new Set(await workDirectories());

async function leftOf(lab: Lab): Promise<string> {
  const files = (await workDirectories()).filter((name) => !ofOthers.has(name));
  const machines = await lab.virsh('list', '--all', '--name');
  const servers = await lab.run('pgrep', ['-f', `qemu-nbd.*${lab.root}`], { check: false });
  return `${files.join()}${machines
    .split('\n')
    .filter((name) => name.startsWith('stillpoint-verify'))
    .join()}${servers.stdout}`;
}

void t.test('a backup is started where it can reach nothing, and taken away again', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({
    name: 'sp-verify',
    nic: true,
    extraDevicesXml: "<video><model type='vga'/></video>",
  });
  await machine.waitUntilWriting({ rounds: 50 });
  const whole = await witness(lab, machine);
  requireFinished(t, await agent.backup(machine));
  const backup = await agent.latest(machine.name);
  const ask = { kind: 'boot', backup: backup.manifest.id, deadlineMs: 90_000 } as const;

  await t.test('booted, by what its serial port says', async (t) => {
    requireFinished(t, await agent.ask({ ...ask, start: 'boot', expect: 'writer:' }));
    const result = await resultOf(backup);
    t.match(result, { ok: true, evidence: 'serial', start: 'boot', picture: /\.ppm$|\.png$/ });
    t.ok((await readFile(path.join(backup.directory, result.picture ?? ''))).length > 1000, 'with a picture');
    t.equal(await leftOf(lab), '');
  });

  await t.test('resumed: it goes on, and a black screen proves nothing', async (t) => {
    requireFinished(t, await agent.ask({ ...ask, deadlineMs: 8000 }));
    const result = await resultOf(backup);
    t.match(result, { ok: false, evidence: null, start: 'resume', picture: /./ });
    t.match(result.detail, /no guest agent and no picture/, 'it ran all the time');
    t.equal(await leftOf(lab), '');
  });

  await t.test('and one that does not show what it must is told', async (t) => {
    requireFinished(t, await agent.ask({ ...ask, expect: 'nothing says this', deadlineMs: 3000 }));
    t.match(await resultOf(backup), { ok: false, evidence: null });
  });

  await t.test('and an agent that dies in it leaves nothing', async (t) => {
    await agent.ask(
      { ...ask, expect: 'nothing says this', deadlineMs: 3000 },
      { crashAt: 'verify/before:store' },
    );
    t.not(await leftOf(lab), '', 'it runs on alone');
    await agent.ask({ kind: 'recover' });
    t.equal(await leftOf(lab), '');
  });

  requireError(t, await agent.ask({ ...ask, backup: 'sp-none@latest' }), 'BACKUP_NOT_FOUND');
  await requireNothingLost(t, lab, agent, whole);
});

void t.test('a screen that shows something and settles is evidence', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine(
    { name: 'sp-screen', extraDevicesXml: "<video><model type='vga'/></video>" },
    { start: false },
  );
  // Its firmware looks for something to boot, and says that there is nothing.
  const definition = (await machine.xml('inactive')).replaceAll(/<(kernel|initrd|cmdline)>[^<]*<\/\1>/g, '');
  const file = path.join(lab.root, 'tmp', 'screen.xml');
  await lab.run('tee', [file], { input: definition });
  await lab.virsh('define', file);
  requireFinished(t, await agent.backup(machine, { mode: 'offline' }));
  const backup = await agent.latest(machine.name);
  requireFinished(t, await agent.ask({ kind: 'boot', backup: backup.manifest.id, deadlineMs: 90_000 }));
  t.match(await resultOf(backup), { ok: true, evidence: 'screen', start: 'boot' });
  t.equal(await leftOf(lab), '');
});

void t.test("a guest agent's answer is evidence, and its open channel alone is none", async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const machine = await lab.createMachine({ name: 'sp-agent', guestAgent: true });
  await machine.waitUntilWriting();
  await eventually(async () => (await machine.xml('live')).includes("state='connected'"));
  const verified = async (how: 'boot' | 'resume', deadlineMs: number): Promise<unknown> => {
    const backup = await agent.latest(machine.name);
    requireFinished(t, await agent.ask({ kind: 'boot', backup: backup.manifest.id, start: how, deadlineMs }));
    t.equal(await leftOf(lab), '');
    return resultOf(backup);
  };
  requireFinished(t, await agent.backup(machine));
  t.match(await verified('resume', 60_000), { ok: true, evidence: 'agent', start: 'resume' });
  t.match(await verified('boot', 60_000), { ok: true, evidence: 'agent', start: 'boot' });
  await machine.command('agent-deaf 1');
  requireFinished(t, await agent.backup(machine));
  await machine.command('agent-deaf 0');
  t.match(await verified('resume', 8000), { ok: false, evidence: null, start: 'resume' });
});
