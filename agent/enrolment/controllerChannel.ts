import { X509Certificate } from 'node:crypto';
import { createSecureContext } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, credentials } from '@grpc/grpc-js';
import { certificatesIn, secureContextOptions, validityProblem } from '../../common/tls/material.ts';
import { peerNameOf } from '../../common/tls/peerName.ts';
import type { Identity } from '../identity/identity.ts';

/**
 * The name that is sent along with every connection to a controller (SNI). Its certificate names no host of the network,
 * and an address of IP, which is what is called most of the time, cannot be sent (RFC 6066, 3).
 */
export const controllerServerName = 'controller.stillpoint.invalid';

/** Options of every channel to a controller. */
export const controllerChannelOptions: ChannelOptions = {
  'grpc.ssl_target_name_override': controllerServerName,
  'grpc.max_receive_message_length': 4 * 1024 * 1024,
};

/**
 * Credentials for a host that has joined: both sides show certificates of the controller's CA.
 * @param revoked serial numbers of certificates of controllers that do not count any more
 * @param onShown is given the certificate of the controller with each connection
 */
export function hostCredentials(
  identity: Identity,
  revoked: ReadonlySet<string>,
  onShown: (certificate: X509Certificate) => void = () => undefined,
): ChannelCredentials {
  return credentials.createFromSecureContext(createSecureContext(secureContextOptions(identity)), {
    checkServerIdentity: (name, { raw }) => {
      const certificate = new X509Certificate(raw);
      onShown(certificate);
      return refuseOtherThanController(name, { raw }) ?? refuseRevoked(certificate, revoked);
    },
  });
}

/**
 * What there is by now against the controller of a connection that was let through.
 * @returns undefined: nothing
 */
export function objectionTo(
  certificate: X509Certificate,
  revoked: ReadonlySet<string>,
  now: Date,
): Error | undefined {
  const dates = validityProblem(certificate, now);
  return dates === null
    ? refuseRevoked(certificate, revoked)
    : new Error(`the certificate of the controller ${dates}`);
}

/** Credentials for a host that joins: the controller proves itself by its CA, the host by a token in its call. */
export function joiningCredentials(authorities: string): ChannelCredentials {
  const context = createSecureContext({
    ca: certificatesIn(authorities).map((authority) => authority.toString()),
    minVersion: 'TLSv1.3',
  });
  return credentials.createFromSecureContext(context, { checkServerIdentity: refuseOtherThanController });
}

/** A host has a certificate of the same CA: it must not pass for the controller. */
function refuseOtherThanController(_: string, { raw }: { readonly raw: Buffer }): Error | undefined {
  const certificate = new X509Certificate(raw);
  if (peerNameOf(certificate)?.role === 'controller') return undefined;
  return new Error(`not the certificate of a controller: ${certificate.subjectAltName ?? 'it names nobody'}`);
}

/** Who has stolen the key of a controller gets no reports, and cannot say that nothing was revoked. */
function refuseRevoked({ serialNumber }: X509Certificate, revoked: ReadonlySet<string>): Error | undefined {
  return revoked.has(serialNumber) ? new Error(`certificate ${serialNumber} was revoked`) : undefined;
}
