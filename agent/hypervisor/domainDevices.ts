import type { Element } from '@xmldom/xmldom';

import { attribute, child, children } from './domainDom.ts';

/** Why a machine's memory cannot be saved, or what of it would not be in the save. */
export type HostDeviceKind =
  /** PCI, USB, SCSI or mediated device of the host. */
  | 'hostdev'
  /** Network card of the host, handed to the guest. */
  | 'interface-hostdev'
  | 'vhost-user'
  | 'vdpa'
  /** Directory of the host (virtiofs, 9p). */
  | 'filesystem'
  | 'shmem'
  /** NVDIMM or virtio-pmem: guest data in a file that is not a volume. */
  | 'persistent-memory'
  /** Input device or smartcard of the host. */
  | 'input-passthrough'
  | 'smartcard'
  /** 3D acceleration: its state lives in the host's GPU. */
  | 'gpu-3d'
  /** Encrypted memory (SEV, SEV-SNP, TDX, s390 secure execution). */
  | 'launch-security'
  /** CPU feature that QEMU refuses to migrate. */
  | 'cpu-feature';

export interface HostDevice {
  readonly kind: HostDeviceKind;
  /** For people: what it is, with what identifies it. */
  readonly description: string;
}

/** What in a definition prevents a save of the memory state (QEMU: "Migration is disabled …"). */
export function readHostDevices(root: Element): HostDevice[] {
  const found: HostDevice[] = [];
  const add = (kind: HostDeviceKind, description: string): void => {
    found.push({ kind, description });
  };
  const devices = child(root, 'devices');
  for (const device of children(devices, 'hostdev')) add('hostdev', describeHostdev(device));
  for (const device of children(devices, 'interface')) {
    const type = attribute(device, 'type');
    const mac = attribute(child(device, 'mac'), 'address') ?? 'without MAC';
    if (type === 'hostdev') add('interface-hostdev', `network interface ${mac} of the host`);
    if (type === 'vhostuser') add('vhost-user', `vhost-user network interface ${mac}`);
    if (type === 'vdpa') add('vdpa', `vDPA network interface ${mac}`);
  }
  for (const device of children(devices, 'filesystem')) {
    const source = child(device, 'source');
    const where =
      attribute(source, 'dir') ?? attribute(source, 'socket') ?? attribute(child(device, 'target'), 'dir');
    const type = attribute(child(device, 'driver'), 'type') ?? '9p';
    add('filesystem', `directory of the host ${where ?? ''} (${type})`);
  }
  for (const device of children(devices, 'shmem')) {
    add('shmem', `shared memory ${attribute(device, 'name') ?? ''}`);
  }
  for (const device of children(devices, 'memory')) {
    const model = attribute(device, 'model');
    if (model === 'nvdimm' || model === 'virtio-pmem')
      add('persistent-memory', `persistent memory (${model})`);
  }
  for (const device of children(devices, 'input')) {
    const type = attribute(device, 'type');
    if (type === 'passthrough' || type === 'evdev') {
      const source = child(device, 'source');
      add(
        'input-passthrough',
        `input device ${attribute(source, 'evdev') ?? attribute(source, 'dev') ?? ''}`,
      );
    }
  }
  for (const device of children(devices, 'smartcard')) {
    const mode = attribute(device, 'mode') ?? 'host';
    if (mode !== 'passthrough') add('smartcard', `smartcard (${mode})`);
  }
  for (const video of children(devices, 'video')) {
    if (attribute(child(video, 'model', 'acceleration'), 'accel3d') === 'yes')
      add('gpu-3d', '3D acceleration');
  }
  for (const security of children(root, 'launchSecurity')) {
    add('launch-security', `launch security (${attribute(security, 'type') ?? 'unknown'})`);
  }
  for (const feature of children(child(root, 'cpu'), 'feature')) {
    // QEMU refuses to migrate an invariant TSC unless its frequency is fixed, which libvirt does by <timer>.
    const policy = attribute(feature, 'policy') ?? 'require';
    const required = policy === 'require' || policy === 'force';
    if (attribute(feature, 'name') === 'invtsc' && required && !hasFixedTsc(root)) {
      add('cpu-feature', 'CPU feature invtsc without a fixed TSC frequency');
    }
  }
  return found;
}

function hasFixedTsc(root: Element): boolean {
  return children(child(root, 'clock'), 'timer').some(
    (timer) => attribute(timer, 'name') === 'tsc' && attribute(timer, 'frequency') !== undefined,
  );
}

function describeHostdev(device: Element): string {
  const type = attribute(device, 'type') ?? attribute(device, 'mode') ?? 'unknown';
  const source = child(device, 'source');
  const identity = [
    child(source, 'address'),
    child(source, 'vendor'),
    child(source, 'product'),
    child(source, 'adapter'),
  ]
    .flatMap((element) => [...(element?.attributes ?? [])].map(({ name, value }) => `${name}=${value}`))
    .join(' ');
  return `${type} device of the host ${identity}`.trim();
}
