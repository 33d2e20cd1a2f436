import t, { type Test } from 'tap';
import { eventually } from '../lab/eventually.ts';
import { type Lab, type LabMachine, startLab } from '../lab/lab.ts';
import {
  artifact,
  requireError,
  requireFinished,
  requireNothingLost,
  TestAgent,
  witness,
} from './support.ts';

/* The guest's agent (test/lab/guest/agent.c) freezes what the writer writes; here it also misbehaves. */

async function stage(lab: Lab): Promise<{ readonly agent: TestAgent; readonly machine: LabMachine }> {
  const policies = { default: { deadlines: { freezeSeconds: 6 } } };
  const agent = await TestAgent.install(lab, { rest: { policies } });
  const machine = await lab.createMachine({
    name: 'sp-frozen',
    guestAgent: true,
    volumes: [{ target: 'vda', prefillMiB: 8 }, { target: 'vdb' }],
  });
  return { agent, machine };
}

void t.test('the guest is frozen at T1 by its agent, and thawed whatever happens', async (t) => {
  await using lab = await startLab();
  const { agent, machine } = await stage(lab);
  const whole = await witness(lab, machine);
  const consistency = async (): Promise<unknown> => {
    const { manifest } = await agent.latest(machine.name);
    return { consistency: manifest.consistency, reason: manifest.consistencyReason };
  };
  const agentShownAs = (state: 'connected' | 'disconnected'): Promise<unknown> =>
    eventually(async () =>
      new RegExp(`name='org.qemu.guest_agent.0' state='${state}'`).test(await machine.xml('live')),
    );
  const requireThawed = async (t: Test): Promise<void> => {
    t.equal((await machine.writerStatus()).frozen, false, 'the guest is thawed');
    await requireNothingLost(t, lab, agent, whole);
  };

  await t.test('all volumes hold the same last write, because none was in flight', async (t) => {
    await machine.command('rate 0');
    for (const _ of [1, 2, 3]) {
      requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
      const backup = await agent.latest(machine.name);
      t.match(backup.manifest, { consistency: 'filesystem', consistencyReason: /froze 2 file system/ });
      t.comment(`the guest's writes waited up to ${Math.round(backup.manifest.freezeMs ?? -1)} ms`);
      t.ok((backup.manifest.freezeMs ?? 0) > 0);
      const [vda, vdb] = [
        await lab.readDisk(artifact(backup, 'vda')),
        await lab.readDisk(artifact(backup, 'vdb')),
      ];
      t.equal(vda.highestSequence, vdb.highestSequence);
      t.match(
        [vda, vdb],
        [
          { missing: [], torn: 0 },
          { missing: [], torn: 0 },
        ],
      );
    }
    await machine.command('rate 200');
    await requireThawed(t);
  });

  await t.test('an agent that hangs is not asked to freeze', async (t) => {
    await machine.command('agent-deaf 1');
    requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
    t.match(await consistency(), { consistency: 'crash', reason: /not ready: .*not responding/ });
    await machine.command('agent-deaf 0');
    await requireThawed(t);
  });

  await t.test('an agent that is late freezes nothing that stays frozen', async (t) => {
    // libvirt gives up after 6 s; the guest is frozen 2 s later, and then finds our thaw.
    await machine.command('agent-late 8000');
    const answer = await agent.backup(machine, { mode: 'disk' });
    requireFinished(t, answer);
    t.match(answer.warnings.join('\n'), /not frozen: .*not responding/);
    t.match(await consistency(), { consistency: 'crash', reason: /not responding/ });
    await requireThawed(t);
  });

  await t.test('an agent that refuses is told of', async (t) => {
    await machine.command('agent-refuse 1');
    requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
    t.match(await consistency(), { consistency: 'crash', reason: /told to refuse/ });
    await machine.command('agent-refuse 0');
    await requireThawed(t);
  });

  await t.test('an agent that dies in the frozen guest: the job waits for the next one', async (t) => {
    const before = await agent.latest(machine.name);
    await machine.command('agent-die-frozen');
    const answer = await agent.backup(machine, { mode: 'disk' });
    requireError(t, answer, 'CANNOT_THAW');
    t.equal(answer.job?.holdsMachine, true);
    t.equal((await machine.writerStatus()).frozen, true, 'nobody could thaw it');
    // libvirt has lost the first one's end, because a backup was under way: it must see another one.
    await machine.command('agent-start');
    await machine.command('agent-die');
    // QEMU tells of a port at most once a second: of a quick end and start nothing would be heard.
    await agentShownAs('disconnected');
    await machine.command('agent-start');
    await agentShownAs('connected');
    const retried = await agent.ask({ kind: 'retry', id: answer.job?.id ?? '' });
    t.match(retried.job, { state: 'failed', holdsMachine: false });
    t.equal((await agent.latest(machine.name)).manifest.id, before.manifest.id, 'nothing of it was kept');
    await requireThawed(t);
    requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
    t.match(await consistency(), { consistency: 'filesystem' }, 'libvirt has found the new agent');
  });

  await t.test('our agent is killed while the guest is frozen: the next one thaws it', async (t) => {
    for (const crashAt of ['backup/begin/freezing', 'backup/begin/frozen']) {
      await agent.backup(machine, { mode: 'disk', crashAt });
      if (crashAt.endsWith('frozen')) t.equal((await machine.writerStatus()).frozen, true);
      await agent.ask({ kind: 'recover' });
      await requireThawed(t);
    }
  });

  await t.test('libvirtd dies while the guest is frozen', async (t) => {
    await agent.backup(machine, { mode: 'disk', crashAt: 'backup/begin/frozen' });
    await lab.killLibvirtd('SIGKILL');
    await lab.startLibvirtd();
    await agent.ask({ kind: 'recover' });
    await requireThawed(t);
  });

  await t.test('where the policy requires a freeze, there is no backup without one', async (t) => {
    await agent.setup.configure({ rest: { policies: { default: { freeze: 'required' } } } });
    requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
    await machine.command('agent-die');
    const before = await agent.latest(machine.name);
    requireError(t, await agent.backup(machine, { mode: 'disk' }), 'GUEST_NOT_FROZEN');
    t.equal((await agent.latest(machine.name)).manifest.id, before.manifest.id);
    await requireThawed(t);
  });
});
