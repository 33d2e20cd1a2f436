import type { Element } from '@xmldom/xmldom';
import { appendElement, child, children, removeElement } from './domainDom.ts';

/** What a network card of a machine is connected to; `none`: it has no link, and needs nothing of the host. */
export type NetworkPlace =
  | { readonly kind: 'network'; readonly name: string }
  | { readonly kind: 'bridge'; readonly name: string }
  | { readonly kind: 'none' };

/** What belongs to the place that a card was connected to, and not to the card. */
const ofThePlace = [
  'source',
  'virtualport',
  'target',
  'vlan',
  'bandwidth',
  'portForward',
  'backend',
  'ip',
  'route',
];

/** Connects an `<interface>` to another place; the guest sees the same card with the same address. */
export function connectInterface(nic: Element, place: NetworkPlace): void {
  for (const name of ofThePlace) for (const element of children(nic, name)) removeElement(element);
  if (place.kind === 'none') {
    // QEMU's own user network without a link: whoever brings the link up reaches no network of the host's.
    nic.setAttribute('type', 'user');
    (child(nic, 'link') ?? appendElement(nic, 'link')).setAttribute('state', 'down');
    return;
  }
  nic.setAttribute('type', place.kind);
  appendElement(nic, 'source').setAttribute(place.kind, place.name);
}
