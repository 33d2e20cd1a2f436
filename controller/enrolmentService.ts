import { X509Certificate } from 'node:crypto';
import { type handleUnaryCall, type ServerUnaryCall, status, type StatusObject } from '@grpc/grpc-js';
import type { Logger } from '../common/log.ts';
import { certificatesIn } from '../common/tls/material.ts';
import { type CallConnection, peerOfCall } from '../common/tls/peerOfCall.ts';
import type {
  EnrolmentServiceServer,
  IssuedCertificate,
} from '../proto/generated/stillpoint/v1/enrolment.ts';
import type { CertificateAuthority } from './ca.ts';
import { CaError, type CaErrorCode } from './caErrors.ts';

/** What becomes of an error on the wire; proto/stillpoint/v1/enrolment.proto says what a host makes of it. */
const statusOf: Readonly<Record<CaErrorCode, status>> = {
  TOKEN_UNKNOWN: status.UNAUTHENTICATED,
  TOKEN_EXPIRED: status.UNAUTHENTICATED,
  TOKEN_USED: status.UNAUTHENTICATED,
  TOKEN_OF_ANOTHER_HOST: status.UNAUTHENTICATED,
  HOST_ENROLLED: status.ALREADY_EXISTS,
  REQUEST_INVALID: status.INVALID_ARGUMENT,
  CERTIFICATE_UNKNOWN: status.PERMISSION_DENIED,
};

/** Serves the enrolment of hosts by a CA. Tokens never reach the log. */
export function enrolmentService(ca: CertificateAuthority, log: Logger): EnrolmentServiceServer {
  return {
    enrol: answering(log, ({ request }) => {
      const { token, certificateRequest, host } = request;
      const hostId = host?.hostId ?? '';
      const certificate = ca.enrol({ token, certificateRequest, hostId });
      log.info({ hostId, name: host?.name, serial: serialOf(certificate) }, 'a host has joined');
      return { issued: issuedBy(ca, certificate) };
    }),
    renew: answering(log, (call) => {
      const hostId = hostIdOf(call);
      const certificate = ca.renew(hostId, call.request.certificateRequest);
      log.info({ hostId, serial: serialOf(certificate) }, 'a host has renewed its certificate');
      return { issued: issuedBy(ca, certificate) };
    }),
    listRevoked: answering(log, (call) => {
      hostIdOf(call);
      return { serials: [...ca.revokedControllers()] };
    }),
  };
}

/**
 * The host that makes a call, by the certificate of its connection.
 * @throws CaError CERTIFICATE_UNKNOWN when that is none of a host
 */
export function hostIdOf(call: CallConnection): string {
  const peer = peerOfCall(call);
  if (peer?.role !== 'host') throw new CaError('CERTIFICATE_UNKNOWN', 'this needs the certificate of a host');
  return peer.id;
}

/** A handler that answers with what a function returns, or with what its error means to the host. */
function answering<Request, Response>(
  log: Logger,
  work: (call: ServerUnaryCall<Request, Response>) => Response,
): handleUnaryCall<Request, Response> {
  return (call, done) => {
    try {
      done(null, work(call));
    } catch (error) {
      log.warn({ err: error, peer: call.getPeer() }, 'a host was given no certificate');
      done(errorFor(error));
    }
  };
}

function errorFor(error: unknown): Partial<StatusObject> {
  if (error instanceof CaError) return { code: statusOf[error.code], details: error.message };
  // What nobody foresaw is in the log; who is not trusted yet need not know it.
  return { code: status.INTERNAL, details: 'the controller failed; its log says why' };
}

function issuedBy(ca: CertificateAuthority, certificate: string): IssuedCertificate {
  return {
    certificate: new X509Certificate(certificate).raw,
    authorities: certificatesIn(ca.certificate).map(({ raw }) => raw),
    controllerName: ca.name,
  };
}

function serialOf(certificate: string): string {
  return new X509Certificate(certificate).serialNumber;
}
