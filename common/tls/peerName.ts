import type { X509Certificate } from 'node:crypto';

/** What a certificate of a controller's CA is for. One role is never taken for the other. */
export type PeerRole = 'host' | 'controller';

/** The name in a certificate. */
export interface PeerName {
  readonly role: PeerRole;
  /** UUID of a host, or the name of a controller. */
  readonly id: string;
}

/** What the identifier in a name is made of; no character in it means anything in a URI or to a shell. */
export const peerIdPattern = /^[A-Za-z0-9._-]{1,64}$/;

const uriForm = /^URI:stillpoint:\/\/(host|controller)\/([A-Za-z0-9._-]{1,64})$/;
/** Labels of a name of the network, as most libraries of TLS compare them. */
const dnsNamePattern = /^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$/;

/** The URI that stands in the certificate: `stillpoint://host/UUID` or `stillpoint://controller/NAME`. */
export function formatPeerName({ role, id }: PeerName): string {
  return `stillpoint://${role}/${id}`;
}

/**
 * The same for libraries that compare names of the network only, as those of gRPC for most languages: the id of a host.
 * `null`: there is none. A controller is never called by such a library.
 */
export function dnsNameOf({ role, id }: PeerName): string | null {
  return role === 'host' && dnsNamePattern.test(id) ? id : null;
}

/**
 * The name in a certificate; `null` unless its subject alternative names (RFC 5280, 4.2.1.6) are that one, or that one
 * and what `dnsNameOf` says of it: of two that differ, readers could choose different ones.
 */
export function peerNameOf(certificate: Pick<X509Certificate, 'subjectAltName'>): PeerName | null {
  const [first = '', ...others] = (certificate.subjectAltName ?? '').split(', ');
  const [, role, id] = uriForm.exec(first) ?? [];
  if ((role !== 'host' && role !== 'controller') || id === undefined) return null;
  const name: PeerName = { role, id };
  const dnsName = dnsNameOf(name);
  const isAlone = others.length === 0;
  return isAlone || (others.length === 1 && dnsName !== null && others[0] === `DNS:${dnsName}`) ? name : null;
}
