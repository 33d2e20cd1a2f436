import { randomUUID } from 'node:crypto';
import path from 'node:path';
import t from 'tap';
import * as z from 'zod';
import { eventually, type Lab, type LabAgent, type LabMachine, startLab } from '../lab/lab.ts';

const mib = 1024 * 1024;
const listedSchema = z.object({ backups: z.array(z.looseObject({ state: z.string() })) });

/** libvirt refuses to migrate to what has the same name or the same UUID. */
async function becomeAnotherHost(lab: Lab): Promise<void> {
  await lab.killLibvirtd('SIGTERM');
  const daemon = 'exec libvirtd -d -p /run/libvirtd.pid -f /etc/libvirt/libvirtd.conf';
  await lab.run('unshare', ['--uts', 'sh', '-c', `hostname sp-other-host && ${daemon}`]);
  await eventually(async () => (await lab.virsh('hostname')).trim() === 'sp-other-host');
}

void t.test('a real migration between two hosts that share their images', async (t) => {
  let from: Lab;
  let to: Lab;
  let here: LabAgent;
  let there: LabAgent;
  let machine: LabMachine;
  t.before(async () => {
    from = await startLab();
    to = await startLab({ libvirtdConf: [`host_uuid = "${randomUUID()}"`] });
    await becomeAnotherHost(to);
    const slow = { mode: 'disk', read: { bandwidthBytesPerSecond: mib } };
    here = await from.installAgent({ rest: { policies: { default: slow } } });
    there = await to.installAgent();
    machine = await from.createMachine({
      name: 'sp-moving',
      volumes: [{ target: 'vda', sizeMiB: 96, prefillMiB: 48 }],
    });
    await machine.waitUntilWriting();
  });
  t.after(async () => {
    await from.stop();
    await to.stop();
  });

  const migrate = (
    ...options: readonly string[]
  ): Promise<{ exitCode: number | undefined; stderr: string }> => {
    const destination = `qemu+unix:///system?socket=${path.join(to.root, 'run/libvirt/libvirt-sock')}`;
    const how = ['--live', '--unsafe', '--persistent', '--migrateuri', 'tcp://127.0.0.1', ...options];
    const args = ['-q', '-c', 'qemu:///system', 'migrate', machine.name, destination, ...how];
    return from.run('virsh', args, { check: false, timeoutMs: 120_000 });
  };

  await t.test(
    'libvirt lets it wait for a backup in mode disk, and refuses it after half a minute',
    async (t) => {
      const backup = here.background(['backup', machine.name, '--json'], { timeoutMs: 300_000 });
      await eventually(async () => (await from.virsh('domjobinfo', machine.name)).includes('Backup'), {
        timeoutMs: 60_000,
      });
      t.not((await migrate()).exitCode, 0);
      backup.kill('SIGINT');
      t.match(await backup.done, { exitCode: 130 });
      t.match(await from.virsh('domstate', machine.name), /running/);
    },
  );

  await t.test(
    'the host that it has left does not read its images, although its definition has stayed',
    async (t) => {
      const moved = await migrate();
      t.equal(moved.exitCode, 0, moved.stderr);
      t.match(await from.virsh('domstate', '--reason', machine.name), /shut off \(migrated\)/);
      const refused = await here.run(['backup', machine.name]);
      t.equal(refused.exitCode, 8);
      t.match(refused.stderr, /MACHINE_LEFT/);
    },
  );

  await t.test('the host that has it now backs it up', async (t) => {
    const done = await there.run(['backup', machine.name]);
    t.equal(done.exitCode, 0, done.stderr);
    const listed = listedSchema.parse((await there.run(['list', '--json'])).json());
    t.match(listed.backups, [{ state: 'Active' }]);
  });
});
