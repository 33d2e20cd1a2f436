import { X509Certificate } from 'node:crypto';
import type { ServerUnaryCall } from '@grpc/grpc-js';
import { type PeerName, peerNameOf } from './peerName.ts';

/** As much of a call of gRPC as says over which connection it came. */
export type CallConnection = Pick<ServerUnaryCall<unknown, unknown>, 'getAuthContext'>;

/**
 * Who makes a call, as the certificate of its connection says, at which the listener has looked; what a message says of
 * its sender does not count. `null` for a connection without a certificate that names somebody.
 */
export function peerOfCall(call: CallConnection): PeerName | null {
  const shown = call.getAuthContext().sslPeerCertificate;
  return shown === undefined ? null : peerNameOf(new X509Certificate(shown.raw));
}
