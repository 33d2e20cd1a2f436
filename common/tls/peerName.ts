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

const alternativeNameForm = /^URI:stillpoint:\/\/(host|controller)\/([A-Za-z0-9._-]{1,64})$/;

/** The URI that stands in the certificate: `stillpoint://host/UUID` or `stillpoint://controller/NAME`. */
export function formatPeerName({ role, id }: PeerName): string {
  return `stillpoint://${role}/${id}`;
}

/**
 * The name in a certificate; `null` unless that is its only subject alternative name (RFC 5280, 4.2.1.6): of two,
 * readers could choose different ones.
 */
export function peerNameOf(certificate: X509Certificate): PeerName | null {
  const [, role, id] = alternativeNameForm.exec(certificate.subjectAltName ?? '') ?? [];
  return (role === 'host' || role === 'controller') && id !== undefined ? { role, id } : null;
}
