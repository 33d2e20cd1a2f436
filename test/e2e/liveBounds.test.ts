import t from 'tap';
import { startLab } from '../lab/lab.ts';
import { requireError, requireNothingLost, TestAgent, witness } from './support.ts';

/** What is left free beside the image: less than twice what the guest writes over, and the reserve. */
const freeMiB = 40;
const mib = 1024 * 1024;

void t.test('an overlay ends before there is no room to merge it', async (t) => {
  await using lab = await startLab();
  // Reading takes a minute: the guest has written all over its region long before.
  const read = { bandwidthBytesPerSecond: mib };
  const agent = await TestAgent.install(lab, { rest: { policies: { default: { read } } } });
  const small = await lab.loopFilesystem('ext4', 256);
  const machine = await lab.createMachine({
    name: 'sp-small',
    volumes: [{ target: 'vda', path: `${small}/vda.qcow2`, prefillMiB: 60 }],
  });
  await machine.command('rate 0');
  const whole = await witness(lab, machine);
  const { stdout } = await lab.run('stat', ['-f', '-c', '%a %S', small]);
  const [blocks = 0, blockBytes = 0] = stdout.trim().split(' ').map(Number);
  const fillBytes = blocks * blockBytes - freeMiB * mib;
  await lab.run('fallocate', ['-l', String(fillBytes), `${small}/filling`]);

  const answer = await agent.backup(machine, { mode: 'live' });
  requireError(t, answer, 'OVERLAY_FULL');
  await requireNothingLost(t, lab, agent, whole);
  t.equal((await machine.state()).split(' ')[0], 'running', 'the guest never stood still for want of space');
});
