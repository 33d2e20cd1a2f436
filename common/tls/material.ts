import { constants, X509Certificate } from 'node:crypto';
import type { SecureContextOptions } from 'node:tls';

/** What one side of a connection shows, and whom it trusts. */
export interface TlsMaterial {
  /** Private key, PEM (PKCS #8). */
  readonly key: string;
  /** Its certificate, PEM. */
  readonly certificate: string;
  /** The CAs whose certificates are accepted, PEM; the one that has issued `certificate` is among them. */
  readonly authorities: string;
}

/**
 * TLS 1.3 and nothing older. The CA is sent along, so that a host that joins can show its fingerprint. Nothing is
 * resumed: a resumed session would be spared the look at its certificate.
 */
export function secureContextOptions({ key, certificate, authorities }: TlsMaterial): SecureContextOptions {
  return {
    key,
    cert: `${certificate}\n${authorities}`,
    ca: certificatesIn(authorities).map((authority) => authority.toString()),
    minVersion: 'TLSv1.3',
    secureOptions: constants.SSL_OP_NO_TICKET,
  };
}

/** The certificates in a PEM text. Throws when one of them cannot be read. */
export function certificatesIn(pem: string): readonly X509Certificate[] {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  return blocks.map((block) => new X509Certificate(block));
}

/** Certificates in DER as one PEM text. Throws when one of them cannot be read. */
export function pemOf(certificates: readonly Uint8Array[]): string {
  return certificates.map((der) => new X509Certificate(der).toString()).join('');
}

/** What the clock has against a certificate, or `null`. */
export function validityProblem(certificate: X509Certificate, now: Date): string | null {
  const { validFromDate, validToDate } = certificate;
  const clock = `the clock here says ${now.toISOString()}`;
  if (now < validFromDate) return `is valid from ${validFromDate.toISOString()} on, and ${clock}`;
  if (now > validToDate) return `expired on ${validToDate.toISOString()}, and ${clock}`;
  return null;
}

/** True when one of these CAs has signed the certificate. Dates are not looked at. */
export function isIssuedByAny(
  certificate: X509Certificate,
  authorities: readonly X509Certificate[],
): boolean {
  return authorities.some(
    (authority) =>
      authority.ca && certificate.checkIssued(authority) && certificate.verify(authority.publicKey),
  );
}
