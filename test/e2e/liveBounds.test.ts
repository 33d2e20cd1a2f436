import t from 'tap';
import { startLab } from '../lab/lab.ts';
import { requireError, requireFinished, requireNothingLost, TestAgent, witness } from './support.ts';

/** What is left free beside the image: less than twice what the guest writes over, and the reserve. */
const freeMiB = 56;
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

void t.test('a guest whose memory never converges gets what its policy says, in bounded time', async (t) => {
  await using lab = await startLab();
  // So much that writing it once takes far longer than QEMU lets a guest stand still, on a slow host too.
  const machine = await lab.createMachine({ name: 'sp-dirty', memoryMiB: 1024 });
  await machine.waitUntilWriting({ rounds: 5 });
  await machine.command('fill 700', 120_000);
  await machine.command('dirty 4000');
  const agentWith = (whenNotConverging: string): Promise<TestAgent> => {
    const live = { convergeSeconds: 2, longestPauseSeconds: 1, whenNotConverging };
    return TestAgent.install(lab, { name: whenNotConverging, rest: { policies: { default: { live } } } });
  };

  await t.test('fail: the machine is as it was', async (t) => {
    const agent = await agentWith('fail');
    const whole = await witness(lab, machine);
    requireError(t, await agent.backup(machine, { mode: 'live' }), 'MEMORY_NOT_CONVERGING');
    await requireNothingLost(t, lab, agent, whole);
  });

  await t.test('disk: a backup without memory, which says why', async (t) => {
    const agent = await agentWith('disk');
    const whole = await witness(lab, machine);
    requireFinished(t, await agent.backup(machine, { mode: 'live' }));
    await requireNothingLost(t, lab, agent, whole);
    const { manifest } = await agent.latest(machine.name);
    t.match(manifest, { mode: 'disk', modeReason: /mode live was given up: sp-dirty changes its memory/ });
  });

  await t.test('pause-longer: it stands still for what is left', async (t) => {
    const agent = await agentWith('pause-longer');
    const whole = await witness(lab, machine);
    requireFinished(t, await agent.backup(machine, { mode: 'live' }));
    await requireNothingLost(t, lab, agent, whole);
    const { manifest } = await agent.latest(machine.name);
    t.match(manifest, { mode: 'live', consistency: 'memory' });
    t.comment(`pause: ${manifest.pauseMs} ms`);
  });
});
