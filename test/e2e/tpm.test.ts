import t from 'tap';
import { type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import {
  digestOf,
  requireError,
  requireFinished,
  requireNothingLost,
  TestAgent,
  witness,
} from './support.ts';

const tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

/** The file in which swtpm keeps what it must not forget. */
function stateFile(uuid: string): string {
  return `/var/lib/libvirt/swtpm/${uuid}/tpm2/tpm2-00.permall`;
}

async function ownerOf(lab: Lab, file: string): Promise<string> {
  return (await lab.run('stat', ['-c', '%U %a', file])).stdout.trim();
}

void t.test('a TPM that libvirt emulates', async (t) => {
  await using lab = await startLab();
  // A machine with checkpoints could not be undefined.
  const policies = { default: { incremental: false } };
  const agent = await TestAgent.install(lab, { rest: { policies } });
  const machine = await lab.createMachine({ name: 'sp-tpm', guestAgent: true, extraDevicesXml: tpm });
  const file = stateFile(machine.uuid);
  const whole = await witness(lab, machine);
  const stored = async (): Promise<string | undefined> =>
    (await agent.latest(machine.name)).manifest.extras.find(({ kind }) => kind === 'tpm')?.sha256;
  const runs = async (one: LabMachine): Promise<void> => {
    await one.waitUntilWriting({ rounds: 5 });
    t.match(await one.verifyFromInside(), { missing: 0, torn: 0, readErrors: 0 });
  };

  await t.test('its state is part of every backup of a running machine', async (t) => {
    for (const mode of ['disk', 'save', 'live'] as const) {
      requireFinished(t, await agent.backup(machine, { mode }));
      t.equal(await stored(), await digestOf(lab, file), `mode "${mode}"`);
      await requireNothingLost(t, lab, agent, whole);
    }
  });

  await t.test('a new machine is resumed with the memory, and has a state of its own', async (t) => {
    requireFinished(t, await agent.restore('sp-tpm@latest', { as: 'sp-resumed' }));
    const copy = await lab.findMachine('sp-resumed');
    await runs(copy);
    t.equal(await ownerOf(lab, stateFile(copy.uuid)), await ownerOf(lab, file), 'it is of the user of swtpm');
    await copy.destroy();
    t.equal(await digestOf(lab, stateFile(copy.uuid)), await stored(), 'it is the one of that instant');
    await copy.remove();
  });

  await t.test('in place the state of that time comes back, and the present one is kept', async (t) => {
    await machine.destroy();
    requireFinished(t, await agent.backup(machine, { mode: 'offline' }));
    const before = await digestOf(lab, file);
    t.equal(await stored(), before, 'mode "offline"');
    await lab.run('sh', ['-c', 'printf changed > "$0"', file]);
    requireFinished(t, await agent.restore('sp-tpm@latest', { inPlace: true, start: 'none' }));
    t.equal(await digestOf(lab, file), before);
    await machine.start();
    await runs(machine);
    t.equal(await ownerOf(lab, file), 'tss 600', 'libvirt gives it to the user of swtpm');
    const kept = await lab.run('sh', ['-c', 'cat /var/lib/libvirt/swtpm/$0/*.replaced-*', machine.uuid]);
    t.equal(kept.stdout, 'changed');
    const left = await lab.run('find', ['/var/lib/libvirt/swtpm', '-name', '.stillpoint']);
    t.equal(left.stdout, '', 'no work file is left');
  });

  await t.test('a machine that is gone comes back with it', async (t) => {
    await machine.destroy();
    await lab.virsh('undefine', machine.uuid);
    t.not((await lab.run('test', ['-e', file], { check: false })).exitCode, 0, 'libvirt throws it away');
    await lab.run('rm', [machine.imagePath()]);
    requireFinished(t, await agent.restore('sp-tpm@latest', { start: 'none' }));
    t.equal(await digestOf(lab, file), await stored());
    await machine.start();
    await runs(machine);
  });

  await t.test('a backup is started in isolation, booted or with its memory', async (t) => {
    requireFinished(t, await agent.backup(machine, { mode: 'live' }));
    for (const start of ['resume', 'boot'] as const) {
      const verified = await agent.ask({ kind: 'boot', backup: 'sp-tpm@latest', start, deadlineMs: 90_000 });
      t.match(verified, { job: { state: 'finished' } }, `${start}: ${verified.error?.message ?? ''}`);
    }
  });

  await t.test('one of another kind is refused', async (t) => {
    const other = await lab.createMachine(
      {
        name: 'sp-passed',
        extraDevicesXml:
          "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
      },
      { start: false },
    );
    requireError(t, await agent.backup(other, { mode: 'offline' }), 'TPM_UNSUPPORTED');
  });
});
