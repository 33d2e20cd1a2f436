import type { Element } from '@xmldom/xmldom';

import { appendElement, attribute, child, children, isElement, removeElement } from './domainDom.ts';

/** Devices that reach the host, or other machines, and that a guest can do without. */
const removedDevices = [
  'hostdev',
  'filesystem',
  'shmem',
  'redirdev',
  'redirfilter',
  'lease',
  'vsock',
  'crypto',
];

/**
 * Keeps a machine from reaching anything of the host or of other machines: no network, no host devices, no shares,
 * no drives but its own volumes, no consoles to elsewhere. What the guest sees of its board stays, so that a memory
 * state of it can be loaded.
 * @param root of the definition
 * @param volumes targets of the disks that it keeps
 * @param serialLog file for what it writes to its first serial port
 * @returns what cannot be kept apart
 */
export function isolate(root: Element, volumes: readonly string[], serialLog: string): readonly string[] {
  const devices = child(root, 'devices');
  for (const kind of removedDevices) for (const device of children(devices, kind)) removeElement(device);
  for (const memory of children(devices, 'memory'))
    if (child(memory, 'source', 'path') !== undefined) removeElement(memory);
  for (const disk of children(devices, 'disk')) isolateDisk(disk, volumes);
  for (const tpm of children(devices, 'tpm')) isolateTpm(tpm);
  for (const nic of children(devices, 'interface')) disconnect(nic);
  for (const graphics of children(devices, 'graphics')) closeGraphics(graphics);
  for (const [index, serial] of children(devices, 'serial').entries())
    redirect(serial, index === 0 ? serialLog : null);
  for (const parallel of children(devices, 'parallel')) redirect(parallel, null);
  for (const console of children(devices, 'console')) {
    // The first one is the first serial port once more.
    if ((attribute(child(console, 'target'), 'type') ?? 'serial') === 'serial') removeElement(console);
    else redirect(console, null);
  }
  for (const channel of children(devices, 'channel')) isolateChannel(channel);
  for (const rng of children(devices, 'rng'))
    if (attribute(child(rng, 'backend'), 'model') === 'egd') removeElement(rng);
  // Elements of a driver's own vocabulary, which `children` leaves out.
  return Array.from(root.childNodes)
    .filter((node) => isElement(node) && node.localName !== 'metadata' && (node.prefix ?? '') !== '')
    .map(({ nodeName }) => `<${nodeName}>, which libvirt hands to QEMU as it is`);
}

/** A drive loses its medium, a disk that is no volume of the backup goes; a read-only one may be the board's. */
function isolateDisk(disk: Element, volumes: readonly string[]): void {
  const target = attribute(child(disk, 'target'), 'dev') ?? '';
  if (volumes.includes(target)) return;
  const device = attribute(disk, 'device') ?? 'disk';
  if (device !== 'cdrom' && device !== 'floppy') return removeElement(disk);
  disk.setAttribute('type', 'file');
  for (const name of ['source', 'backingStore', 'mirror'])
    for (const element of children(disk, name)) removeElement(element);
}

/** The card stays, its cable is pulled out, and behind it is nothing of the host. */
function disconnect(nic: Element): void {
  nic.setAttribute('type', 'user');
  for (const element of children(nic))
    if (
      !['mac', 'model', 'address', 'alias', 'rom', 'boot', 'driver', 'acpi'].includes(element.localName ?? '')
    )
      removeElement(element);
  // Of the driver only what the guest sees.
  for (const driver of children(nic, 'driver')) driver.removeAttribute('name');
  appendElement(nic, 'link').setAttribute('state', 'down');
}

/** One that libvirt emulates is new for each machine, and gone with it; a memory state brings its own. */
function isolateTpm(tpm: Element): void {
  const backend = child(tpm, 'backend');
  if (backend === undefined || attribute(backend, 'type') !== 'emulator') return removeElement(tpm);
  backend.removeAttribute('persistent_state');
  for (const element of children(backend)) removeElement(element);
}

function closeGraphics(graphics: Element): void {
  const type = attribute(graphics, 'type');
  if (type !== 'vnc' && type !== 'spice') return removeElement(graphics);
  for (const { name } of Array.from(graphics.attributes)) if (name !== 'type') graphics.removeAttribute(name);
  for (const element of children(graphics)) removeElement(element);
  appendElement(graphics, 'listen').setAttribute('type', type === 'spice' ? 'none' : 'socket');
}

function redirect(device: Element, file: string | null): void {
  device.setAttribute('type', file === null ? 'null' : 'file');
  for (const name of ['source', 'protocol', 'log'])
    for (const element of children(device, name)) removeElement(element);
  if (file !== null) appendElement(device, 'source').setAttribute('path', file);
}

/** libvirt makes a socket of its own for the guest agent; every other channel ends nowhere. */
function isolateChannel(channel: Element): void {
  const type = attribute(channel, 'type');
  if (type === 'spicevmc' || type === 'spiceport' || type === 'qemu-vdagent') return;
  const name = attribute(child(channel, 'target'), 'name');
  if (name !== 'org.qemu.guest_agent.0') return redirect(channel, null);
  channel.setAttribute('type', 'unix');
  for (const element of children(channel, 'source')) removeElement(element);
  for (const element of children(channel, 'log')) removeElement(element);
}
