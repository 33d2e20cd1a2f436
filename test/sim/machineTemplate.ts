import { randomUUID } from 'node:crypto';

import type { ImageFormat } from '../../common/qemuImage.ts';
import { keepSecret } from '../secrets.ts';

/** Of every simulated machine. */
const vncPassword = 'simulated-secret';

/** A volume of a machine that is to be added to a world. */
export interface VolumeTemplate {
  readonly target: string;
  readonly path: string;
  readonly format?: ImageFormat;
  readonly sizeBytes?: number;
  /** qcow2 image below it, which exists. */
  readonly backing?: string | undefined;
  /** The image is there already. */
  readonly exists?: boolean;
}

export interface MachineTemplate {
  readonly name: string;
  readonly uuid?: string;
  readonly volumes: readonly VolumeTemplate[];
  /** It has a channel for a guest agent, and one runs in the guest. */
  readonly guestAgent?: boolean;
  /** XML that goes into `<devices>`: cdroms, passed-through devices, … */
  readonly devices?: string;
  /** XML that goes into `<os>`, such as `<nvram>`. */
  readonly firmware?: string;
}

export function templateUuid(template: MachineTemplate): string {
  return template.uuid ?? randomUUID();
}

/** A persistent definition as libvirt would store it. */
export function machineDefinition(template: MachineTemplate, uuid: string): string {
  const disks = template.volumes.map(
    ({ target, path, format = 'qcow2' }) => `    <disk type='file' device='disk'>
      <driver name='qemu' type='${format}'/>
      <source file='${escape(path)}'/>
      <target dev='${target}' bus='virtio'/>
    </disk>`,
  );
  return `<domain type='qemu'>
  <name>${escape(template.name)}</name>
  <uuid>${uuid}</uuid>
  <memory unit='KiB'>65536</memory>
  <currentMemory unit='KiB'>65536</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    ${template.firmware ?? ''}
  </os>
  <cpu mode='custom' match='exact' check='none'>
    <model fallback='forbid'>qemu64</model>
  </cpu>
  <devices>
${disks.join('\n')}
    <interface type='user'>
      <mac address='52:54:00:${uuid.slice(0, 2)}:${uuid.slice(2, 4)}:${uuid.slice(4, 6)}'/>
      <model type='virtio'/>
    </interface>
    <graphics type='vnc' port='-1' autoport='yes' passwd='${keepSecret('VNC password', vncPassword)}'/>
    ${template.guestAgent === true ? "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>" : ''}
    ${template.devices ?? ''}
  </devices>
</domain>`;
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll("'", '&apos;');
}
