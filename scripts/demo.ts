import { readdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { styleText } from 'node:util';
import * as z from 'zod';
import { formatBytes } from '../common/units.ts';
import { type Lab, type LabAgent, type LabMachine, startLab, type WriterStatus } from '../test/lab/lab.ts';

const machineName = 'sp-demo';

const shownBackup = z.object({
  pointInTime: z.string(),
  pauseMs: z.number(),
  volumes: z.array(z.object({ file: z.string() })),
  storages: z.array(z.object({ directory: z.string() })),
  steps: z.array(z.object({ name: z.string(), durationMs: z.number() })),
});

function paint(style: 'bold' | 'cyan' | 'green' | 'red', text: string): string {
  return process.stdout.isTTY ? styleText(style, text) : text;
}

let chapter = 0;
function tell(title: string): void {
  chapter += 1;
  console.log(`\n${paint('bold', `${chapter}. ${title}`)}`);
}

function say(text: string): void {
  console.log(`   ${text}`);
}

/** A check of the demo: it says what it found, and a wrong finding ends the demo. */
function check(holds: boolean, what: string): void {
  console.log(`   ${holds ? paint('green', '✔') : paint('red', '✘')} ${what}`);
  if (!holds) throw new Error(`the demo went wrong: not so: ${what}`);
}

/** Prints a command as typed, runs it, and prints what it says. */
async function typed(lab: Lab, command: string, args: readonly string[]): Promise<string> {
  console.log(`   ${paint('cyan', `$ ${[command, ...args].join(' ')}`)}`);
  const { stdout } = await lab.run(command, args);
  printIndented(stdout);
  return stdout;
}

/** Prints and runs a command of ours; both its streams, in the order in which a person would see them. */
async function stillpoint(lab: Lab, agent: LabAgent, args: readonly string[]): Promise<void> {
  console.log(`   ${paint('cyan', `$ stillpoint ${args.join(' ')}`)}`);
  const call = [join(import.meta.dirname, '../bin/stillpoint'), ...args, '--config', agent.configFile];
  const { exitCode, stdout } = await lab.run('sh', ['-c', 'exec "$@" 2>&1', 'sh', ...call], {
    check: false,
    timeoutMs: 300_000,
  });
  printIndented(stdout);
  check(exitCode === 0, `exit code ${exitCode}`);
}

function printIndented(text: string): void {
  for (const line of text.trimEnd().split('\n')) if (line !== '') console.log(`     ${line}`);
}

function describe(status: WriterStatus): string {
  const [first] = status.disks;
  return `run ${status.runId}, ${first?.sequence ?? 0} rounds written to each disk, up ${(status.uptimeMs / 1000).toFixed(1)} s`;
}

async function backUp(lab: Lab, agent: LabAgent, machine: LabMachine): Promise<z.infer<typeof shownBackup>> {
  tell('Back it up while it writes');
  const before = await machine.writerStatus();
  say(`guest before: ${describe(before)}`);
  await stillpoint(lab, agent, ['backup', machineName, '--mode', 'live']);
  const after = await machine.writerStatus();
  say(`guest after:  ${describe(after)}`);
  check(
    after.runId === before.runId && after.sequence > before.sequence,
    'the same run of the guest writes on: it was not restarted',
  );
  const inside = await machine.verifyFromInside();
  check(
    inside.missing === 0 && inside.torn === 0,
    `the guest reads back all ${inside.checked} blocks that it wrote: none missing, none torn`,
  );
  const chain = await lab.run('qemu-img', ['info', '-U', '--output=json', machine.imagePath()]);
  check(!chain.stdout.includes('backing-filename'), 'merged: the disk is one image again, at its old path');

  tell('What is stored');
  const shown = shownBackup.parse((await agent.run(['show', `${machineName}@latest`, '--json'])).json());
  const directory = shown.storages[0]?.directory ?? '';
  say(directory);
  for (const file of await readdir(directory)) {
    say(`  ${formatBytes((await stat(join(directory, file))).size).padStart(9)}  ${file}`);
  }
  say(
    `T1 ${shown.pointInTime}; the vCPUs stood still for ${Math.round(shown.pauseMs)} ms (an emulated guest: KVM is faster)`,
  );
  say(
    `steps: ${shown.steps.map(({ name, durationMs }) => `${name} ${(durationMs / 1000).toFixed(2)} s`).join(', ')}`,
  );
  await stillpoint(lab, agent, ['verify', `${machineName}@latest`, '--data']);
  return shown;
}

async function damage(lab: Lab, machine: LabMachine): Promise<void> {
  tell('A bad day: the machine is killed and its disks are overwritten');
  await typed(lab, 'virsh', ['destroy', machineName]);
  for (const { path } of machine.volumes)
    await typed(lab, 'dd', ['if=/dev/urandom', `of=${path}`, 'bs=1M', 'count=2', 'status=none']);
  const broken = await lab.run('qemu-img', ['info', '-f', 'qcow2', machine.imagePath()], { check: false });
  check(broken.exitCode !== 0, 'qemu-img cannot read the disk any more');
}

async function restore(
  lab: Lab,
  agent: LabAgent,
  machine: LabMachine,
  shown: z.infer<typeof shownBackup>,
  last: WriterStatus,
): Promise<void> {
  tell('Bring it back to T1');
  const directory = shown.storages[0]?.directory ?? '';
  const frozen = await lab.readDisk(join(directory, shown.volumes[0]?.file ?? ''));
  say(`the stored disk ends with round ${frozen.highestSequence} of run ${frozen.runId}`);
  await stillpoint(lab, agent, ['restore', `${machineName}@latest`, '--in-place', '--yes']);
  const restored = await machine.writerStatus();
  say(`guest now: ${describe(restored)}`);
  check(restored.runId === last.runId, 'the same run of the guest: its memory came back, it was not booted');
  const wentOn = await machine.waitUntilWriting({ after: frozen.highestSequence, rounds: 50 });
  check(
    wentOn.runId === last.runId,
    `it goes on after round ${frozen.highestSequence}, and has reached ${wentOn.sequence}`,
  );
  const inside = await machine.verifyFromInside();
  check(
    inside.missing === 0 && inside.torn === 0,
    `disks and memory agree: ${inside.checked} blocks, none missing, none torn`,
  );
  await typed(lab, 'virsh', ['list', '--all']);
}

async function main(): Promise<void> {
  let root = '';
  console.log(
    'Stillpoint backs up a running machine at one instant, and brings it back to exactly that instant.',
  );
  {
    tell('A private libvirtd and a guest that writes');
    await using lab = await startLab();
    root = lab.root;
    say(
      `libvirtd of its own, in a mount namespace, below ${root}; the libvirt of this machine is not touched`,
    );
    const machine = await lab.createMachine({
      name: machineName,
      volumes: [{ target: 'vda' }, { target: 'vdb' }],
    });
    say(
      'the guest stamps a sequence number and a checksum into blocks of two disks, and keeps the number in its memory',
    );
    await machine.waitUntilWriting({ rounds: 200 });
    const agent = await lab.installAgent();
    const shown = await backUp(lab, agent, machine);
    const last = await machine.writerStatus();
    await damage(lab, machine);
    await restore(lab, agent, machine, shown, last);
    const left = await readdir(dirname(machine.imagePath()), { recursive: true });
    const replaced = left.filter((name) => name.includes('.replaced-'));
    const others = left.filter((name) => !replaced.includes(name));
    check(replaced.length === 3, 'what the restore has replaced is kept: two images and the definition');
    check(
      others.every((name) => name.endsWith('.qcow2')),
      `beside the images nothing else of ours is left: ${others.join(', ')}`,
    );
  }
  tell('Nothing is left behind');
  check(
    !(await readdir(dirname(root))).includes(root.slice(dirname(root).length + 1)),
    `${root} is gone, with its libvirtd and its guest`,
  );
}

await main();
