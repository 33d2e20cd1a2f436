/** One volume of a test machine. */
export interface VolumeSpec {
  /** `vda` and so on: virtio, which the guest's writer uses; `sda` and so on: SATA. */
  readonly target: string;
  /** 64 if not given. */
  readonly sizeMiB?: number | undefined;
  /** `qcow2` if not given. */
  readonly format?: 'qcow2' | 'raw' | undefined;
  /** An existing image, or where to create one; `IMAGES/NAME-TARGET.FORMAT` if not given. */
  readonly path?: string | undefined;
  /** Existing image below it (a template). */
  readonly backing?: { readonly path: string; readonly format: 'qcow2' | 'raw' } | undefined;
  /** Fills the end of the volume with this much random data, to make copying take time. */
  readonly prefillMiB?: number | undefined;
  readonly readonly?: boolean | undefined;
}

export interface MachineSpec {
  /** Begins with `sp-`. */
  readonly name: string;
  readonly uuid?: string | undefined;
  /** 128 if not given; UEFI needs 256. */
  readonly memoryMiB?: number | undefined;
  readonly cpus?: number | undefined;
  /** One volume `vda` of 64 MiB if not given. */
  readonly volumes?: readonly VolumeSpec[] | undefined;
  readonly uefi?: boolean | undefined;
  /** A virtio network card with a fixed MAC address. */
  readonly nic?: boolean | undefined;
  /** An empty drive, or one with this file in it. */
  readonly cdrom?: boolean | string | undefined;
  readonly floppy?: boolean | string | undefined;
  /** A channel for the guest agent, which the guest then runs. */
  readonly guestAgent?: boolean | undefined;
  /** Put into `<devices>` as it is. */
  readonly extraDevicesXml?: string | undefined;
  /** Bounds of what the writer does: rounds per second (0: as fast as it can) and MiB it goes round in. */
  readonly rate?: number | undefined;
  readonly regionMiB?: number | undefined;
}

/** A volume with everything decided. */
export interface Volume {
  readonly target: string;
  readonly path: string;
  readonly format: 'qcow2' | 'raw';
  readonly readonly: boolean;
}

/** Name of the virtio-serial port on which the writer takes commands. */
export const writerPort = 'writer.0';

const guestAgentXml = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";

export interface MachineXmlInput {
  readonly spec: MachineSpec;
  readonly uuid: string;
  readonly volumes: readonly Volume[];
  readonly kernel: string;
  readonly initramfs: string;
  readonly cacheMode: 'none' | 'writeback';
}

/** The libvirt definition of a test machine. */
export function machineXml(input: MachineXmlInput): string {
  const { spec, volumes } = input;
  const memoryMiB = spec.memoryMiB ?? (spec.uefi === true ? 256 : 128);
  const disks = volumes.map((volume) => diskXml(volume, input.cacheMode)).join('');
  return `<domain type='qemu'>
  <name>${escapeXml(spec.name)}</name>
  <uuid>${input.uuid}</uuid>
  <memory unit='MiB'>${memoryMiB}</memory>
  <vcpu>${spec.cpus ?? 1}</vcpu>
  <os${spec.uefi === true ? " firmware='efi'" : ''}>
    <type arch='x86_64' machine='q35'>hvm</type>
    ${spec.uefi === true ? "<firmware><feature enabled='no' name='secure-boot'/></firmware>" : ''}
    <kernel>${escapeXml(input.kernel)}</kernel>
    <initrd>${escapeXml(input.initramfs)}</initrd>
    <cmdline>${escapeXml(commandLine(input))}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    ${disks}
    ${removableXml('cdrom', 'sdz', 'sata', spec.cdrom)}
    ${removableXml('floppy', 'fda', 'fdc', spec.floppy)}
    ${spec.nic === true ? nicXml(input.uuid) : ''}
    <serial type='pty'>
      <log file='/var/log/libvirt/qemu/${encodeURIComponent(spec.name)}-console.log' append='on'/>
    </serial>
    <channel type='unix'><target type='virtio' name='${writerPort}'/></channel>
    ${spec.guestAgent === true ? guestAgentXml : ''}
    <memballoon model='none'/>
    ${spec.extraDevicesXml ?? ''}
  </devices>
</domain>
`;
}

function commandLine({ spec, volumes }: MachineXmlInput): string {
  const writable = volumes.filter((volume) => volume.target.startsWith('vd') && !volume.readonly);
  const options = [`sp.disks=${writable.length}`];
  if (spec.rate !== undefined) options.push(`sp.rate=${spec.rate}`);
  if (spec.regionMiB !== undefined) options.push(`sp.region=${spec.regionMiB}`);
  return `console=ttyS0 quiet loglevel=3 panic=1 no_timer_check mitigations=off ${options.join(' ')}`;
}

function diskXml(volume: Volume, cacheMode: string): string {
  const bus = volume.target.startsWith('vd') ? 'virtio' : 'sata';
  return `<disk type='file' device='disk'>
      <driver name='qemu' type='${volume.format}' cache='${cacheMode}' discard='unmap'/>
      <source file='${escapeXml(volume.path)}'/>
      <target dev='${volume.target}' bus='${bus}'/>
      ${volume.readonly ? '<readonly/>' : ''}
    </disk>`;
}

function removableXml(
  device: string,
  target: string,
  bus: string,
  medium: boolean | string | undefined,
): string {
  if (medium === undefined || medium === false) return '';
  const source = typeof medium === 'string' ? `<source file='${escapeXml(medium)}'/>` : '';
  return `<disk type='file' device='${device}'>
      <driver name='qemu' type='raw'/>
      ${source}
      <target dev='${target}' bus='${bus}'/>
      ${device === 'cdrom' ? '<readonly/>' : ''}
    </disk>`;
}

/** QEMU's own user network: no bridge, no address on the host. */
function nicXml(uuid: string): string {
  const tail = uuid.replaceAll('-', '').slice(0, 6);
  const mac = `52:54:00:${tail.slice(0, 2)}:${tail.slice(2, 4)}:${tail.slice(4, 6)}`;
  return `<interface type='user'><mac address='${mac}'/><model type='virtio'/></interface>`;
}

function escapeXml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll("'", '&apos;');
}
