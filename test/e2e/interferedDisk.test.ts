import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import t from 'tap';
import { eventually } from '../lab/eventually.ts';
import { type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import { answerOf, leftovers, requireError, TestAgent } from './support.ts';

const mib = 1024 * 1024;
/** So slow that whatever happens to the machine happens while it is read. */
const slowRead = { policies: { default: { read: { bandwidthBytesPerSecond: 2 * mib } } } };

const interferences: readonly {
  readonly what: string;
  readonly act: (lab: Lab, machine: LabMachine) => Promise<unknown>;
  readonly state: RegExp;
}[] = [
  {
    what: 'its guest powers itself off',
    act: (_lab, machine) => machine.command('poweroff').catch(() => 'the connection ends with the guest'),
    state: /^shut off/,
  },
  { what: 'its owner destroys it', act: (_lab, machine) => machine.destroy(), state: /^shut off/ },
  {
    what: 'its QEMU is killed',
    act: (lab, machine) => lab.killQemu(machine.name),
    state: /^shut off \(crashed\)/,
  },
  {
    what: 'somebody ends the backup in QEMU',
    act: (lab, machine) => lab.virsh('domjobabort', machine.uuid),
    state: /^running/,
  },
];

/** The socket at which QEMU serves the only backup; `''` before there is one. */
async function socketOf(lab: Lab): Promise<string> {
  const { stdout } = await lab.run('sh', ['-c', 'ls /run/stillpoint/*/nbd'], { check: false });
  return stdout.trim();
}

/** How many clients QEMU has taken there, from when on each has only to negotiate: see the trap below. */
async function connectionsOf(socket: string): Promise<number> {
  if (socket === '') return 0;
  const sockets = (await readFile('/proc/net/unix', 'utf8')).split('\n').map((line) => line.split(/\s+/));
  return sockets.filter(([, , , , , state, , file]) => file === socket && state === '03').length;
}

void t.test('a backup in mode "disk" loses its T1 when', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab, { rest: slowRead });
  const machine = await lab.createMachine({ name: 'sp-lost', volumes: [{ target: 'vda', prefillMiB: 48 }] });
  for (const { what, act, state } of interferences) {
    await t.test(what, async (t) => {
      if (!(await machine.state()).startsWith('running')) await machine.start();
      await machine.waitUntilWriting({ rounds: 5 });
      const run = agent.start({ kind: 'backup', machine: machine.uuid, mode: 'disk' });
      await eventually(async () => (await connectionsOf(await socketOf(lab))) === 2, { timeoutMs: 30_000 });
      await act(lab, machine);
      const answer = await answerOf(run);
      requireError(t, answer, 'MACHINE_INTERFERED');
      t.equal(answer.job?.state, 'failed');
      t.match(await machine.state(), state, 'it stays as it was left');
      t.same(await leftovers(lab, machine), [], 'nothing is left beside the images');
      t.equal(
        (
          await lab.run('find', ['/run/stillpoint', '-mindepth', '1', '-not', '-name', 'snapshotting'])
        ).stdout.trim(),
        '',
        'nor a socket',
      );
      const { stdout } = await lab.run('find', [agent.setup.storageDir, '-type', 'f']);
      t.equal(stdout.trim(), '', 'nor anything in the storage');
    });
  }
});

void t.test('trap: QEMU waits for ever for a client that negotiates while the backup ends', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab, { rest: slowRead });
  const machine = await lab.createMachine({ name: 'sp-trap', volumes: [{ target: 'vda', prefillMiB: 48 }] });
  await machine.waitUntilWriting({ rounds: 5 });
  const run = agent.start({ kind: 'backup', machine: machine.uuid, mode: 'disk' });
  await eventually(async () => (await connectionsOf(await socketOf(lab))) === 2, { timeoutMs: 30_000 });
  const silent = connect(lab.outside(await socketOf(lab)));
  await once(silent, 'data');
  await lab.virsh('domjobabort', machine.uuid);
  await t.rejects(machine.writerStatus(5_000), /no answer/, 'the guest stands still, and nothing frees it');
  silent.destroy();
  // What keeps libvirt waiting, too, is ended with it.
  await lab.killQemu(machine.name);
  const answer = await answerOf(run);
  t.equal(answer.job?.state, 'failed');
  t.match(await machine.state(), /^shut off/);
  t.same(await leftovers(lab, machine), []);
});
