import { X509Certificate } from 'node:crypto';
import { createSecureContext } from 'node:tls';
import { type ChannelCredentials, credentials } from '@grpc/grpc-js';
import { secureContextOptions, type TlsMaterial } from '../common/tls/material.ts';
import { formatPeerName, peerNameOf } from '../common/tls/peerName.ts';

/**
 * Credentials with which a controller calls the agent of one host: another host that answers there, and a certificate
 * that was revoked, are refused. The channel needs `grpc.ssl_target_name_override`, for an address of IP is no name.
 *
 * @param isGood of a serial number, as `CertificateAuthority.isGood`
 */
export function agentCredentials(
  material: TlsMaterial,
  hostId: string,
  isGood: (serial: string) => boolean,
): ChannelCredentials {
  return credentials.createFromSecureContext(createSecureContext(secureContextOptions(material)), {
    checkServerIdentity: (_, { raw }) => {
      const certificate = new X509Certificate(raw);
      const name = peerNameOf(certificate);
      const wanted = formatPeerName({ role: 'host', id: hostId });
      if (name === null || formatPeerName(name) !== wanted)
        return new Error(`${wanted} was called, and ${certificate.subjectAltName ?? 'nobody'} answers`);
      return isGood(certificate.serialNumber)
        ? undefined
        : new Error(`the certificate of ${wanted} was revoked`);
    },
  });
}
