import { attribute, child, children, parseDocument, text } from './domainDom.ts';

/** A user and group of this host. */
export interface ProcessUser {
  readonly uid: number;
  readonly gid: number;
}

/**
 * The user as which libvirt starts a machine that says nothing of it: the base label of the DAC driver in the
 * host's capabilities (`+UID:+GID`); `undefined` where there is no such driver.
 * @throws DomainXmlError XML_INVALID
 */
export function defaultUserOf(capabilities: string): ProcessUser | undefined {
  const host = child(parseDocument(capabilities, 'capabilities').documentElement ?? undefined, 'host');
  const model = children(host, 'secmodel').find((one) => text(child(one, 'model')) === 'dac');
  const labels = children(model, 'baselabel');
  const label = labels.find((one) => attribute(one, 'type') === 'kvm') ?? labels[0];
  const [, uid, gid] = /^\+(\d+):\+(\d+)$/.exec(text(label) ?? '') ?? [];
  return uid === undefined || gid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) };
}
