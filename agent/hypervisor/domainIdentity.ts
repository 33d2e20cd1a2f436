import type { Element } from '@xmldom/xmldom';

import { attribute, child, children, descendants, removeElement } from './domainDom.ts';

/** Directories in which libvirt makes up socket paths that carry the machine's name and number. */
const generatedPath = /^(?:\/var\/lib|\/var\/run|\/run)\/libvirt\/qemu\//;

/**
 * Takes out of a definition what belongs to one running instance or would collide with the machine that it
 * was taken from: runtime numbers, generated paths, tap devices, dynamic labels, ports, aliases, ids.
 * libvirt makes all of them anew. Guest-visible addresses stay.
 */
export function removeInstanceState(root: Element): void {
  root.removeAttribute('id');
  // An empty <genid/> asks libvirt for a new one: the guest must see that it is another machine.
  for (const genid of children(root, 'genid')) genid.textContent = '';
  for (const label of children(root, 'seclabel')) removeDynamicLabel(label);
  const devices = child(root, 'devices');
  for (const device of children(devices)) {
    for (const element of [device, ...descendants(device)]) {
      const name = attribute(element, 'name');
      // A user's own alias starts with ua- and is part of the definition.
      if (element.localName === 'alias' && !(name ?? '').startsWith('ua-')) removeElement(element);
    }
  }
  for (const nic of children(devices, 'interface')) removeInterfaceState(nic);
  for (const kind of ['serial', 'parallel', 'console', 'channel']) {
    for (const device of children(devices, kind)) removeCharacterDeviceState(device);
  }
  for (const graphics of children(devices, 'graphics')) removeGraphicsState(graphics);
  for (const cid of children(child(devices, 'vsock'), 'cid')) {
    if (attribute(cid, 'auto') === 'yes') cid.removeAttribute('address');
  }
}

function removeDynamicLabel(label: Element): void {
  if ((attribute(label, 'type') ?? 'dynamic') !== 'dynamic') return;
  if (child(label, 'baselabel') === undefined) {
    removeElement(label);
    return;
  }
  for (const name of ['label', 'imagelabel'])
    for (const element of children(label, name)) removeElement(element);
}

function removeInterfaceState(nic: Element): void {
  for (const target of children(nic, 'target')) {
    target.removeAttribute('dev');
    if (target.attributes.length === 0) removeElement(target);
  }
  for (const source of children(nic, 'source')) source.removeAttribute('portid');
  // Open vSwitch and 802.1Qbh know a port by this id: two machines with one id steal each other's port.
  for (const parameters of children(child(nic, 'virtualport'), 'parameters')) {
    parameters.removeAttribute('interfaceid');
    parameters.removeAttribute('instanceid');
  }
}

function removeCharacterDeviceState(device: Element): void {
  device.removeAttribute('tty');
  const type = attribute(device, 'type');
  for (const source of children(device, 'source')) {
    const path = attribute(source, 'path') ?? '';
    if (type === 'pty' || (type === 'unix' && generatedPath.test(path))) removeElement(source);
  }
  for (const target of children(device, 'target')) target.removeAttribute('state');
}

function removeGraphicsState(graphics: Element): void {
  if (attribute(graphics, 'autoport') === 'yes') {
    if (graphics.hasAttribute('port')) graphics.setAttribute('port', '-1');
    if (graphics.hasAttribute('tlsPort')) graphics.setAttribute('tlsPort', '-1');
    if (graphics.hasAttribute('websocket')) graphics.setAttribute('websocket', '-1');
  }
  for (const element of [graphics, ...children(graphics, 'listen')]) {
    if (generatedPath.test(attribute(element, 'socket') ?? '')) element.removeAttribute('socket');
  }
}

/**
 * Removes what `virsh dumpxml --security-info` adds (libvirt marks only the passwords of the graphical
 * consoles as secure) and returns where something was, for a warning: without its password such a console
 * is open to whoever reaches its port.
 */
export function removeSecrets(root: Element): string[] {
  const removed: string[] = [];
  for (const graphics of children(child(root, 'devices'), 'graphics')) {
    for (const name of ['passwd', 'passwdValidTo']) {
      if (!graphics.hasAttribute(name)) continue;
      graphics.removeAttribute(name);
      removed.push(`graphics ${attribute(graphics, 'type') ?? 'unknown'}: ${name}`);
    }
  }
  return removed;
}

/** Gives consoles back the passwords that they have in another definition of the same machine. */
export function copySecrets(from: Element, to: Element): void {
  const sources = children(child(from, 'devices'), 'graphics');
  for (const [index, graphics] of children(child(to, 'devices'), 'graphics').entries()) {
    const source = sources[index];
    if (source === undefined || attribute(source, 'type') !== attribute(graphics, 'type')) continue;
    for (const name of ['passwd', 'passwdValidTo']) {
      const value = attribute(source, name);
      if (value !== undefined) graphics.setAttribute(name, value);
    }
  }
}
