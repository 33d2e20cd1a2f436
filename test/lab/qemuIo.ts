import type { PrivateLibvirtd } from './libvirtd.ts';
import type { LabMachine } from './machine.ts';

/**
 * Has the QEMU of a running machine write as if the guest had: through the guest's own device, so that bitmaps and
 * backups under way notice. Commands are those of qemu-io, such as `write -P 7 1M 64k`, `write -z 2M 1M` or
 * `discard 4M 1M`. Taints the machine (`custom-monitor`). What a command prints goes to QEMU's own log: look at the
 * volume to see that it was done.
 *
 * @param target a virtio volume, `vda` and so on, whose device has libvirt's usual alias
 * @throws Error with QEMU's answer when one of them is refused
 */
export async function qemuIo(
  libvirtd: PrivateLibvirtd,
  machine: LabMachine,
  target: string,
  commands: readonly string[],
): Promise<void> {
  const device = `/machine/peripheral/${await deviceAlias(machine, target)}/virtio-backend`;
  const input = commands
    .map((text) => `qemu-monitor-command ${machine.uuid} --hmp 'qemu-io -d ${device} "${text}"'\n`)
    .join('');
  const { stdout, stderr } = await libvirtd.run('virsh', ['-q', '-c', 'qemu:///system'], {
    input,
    timeoutMs: 120_000,
  });
  // virsh repeats what it is given.
  const answers = stdout.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('virsh #'));
  if (answers.length > 0 || stderr !== '') throw new Error(`${answers.join('\n')}\n${stderr}`.trim());
}

async function deviceAlias(machine: LabMachine, target: string): Promise<string> {
  const disk = (await machine.xml('live')).split('<disk ').find((part) => part.includes(`dev='${target}'`));
  const alias = /<alias name='(virtio-disk\d+)'/.exec(disk ?? '')?.[1];
  if (alias === undefined) throw new Error(`${machine.name} has no virtio volume ${target}`);
  return alias;
}
