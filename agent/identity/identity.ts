import { createPrivateKey, X509Certificate } from 'node:crypto';
import {
  certificatesIn,
  isIssuedByAny,
  type TlsMaterial,
  validityProblem,
} from '../../common/tls/material.ts';
import { peerNameOf } from '../../common/tls/peerName.ts';
import { IdentityError } from './errors.ts';

/** The controller that a host has joined. */
export interface JoinedController {
  readonly name: string;
  /** `HOST:PORT` of its gRPC services. */
  readonly address: string;
}

/** What a host is to its controller: a key that was made here, and what the controller's CA says of it. */
export interface Identity extends TlsMaterial {
  readonly hostId: string;
  readonly controller: JoinedController;
}

/** One that is in force. */
export interface KeptIdentity extends Identity {
  /** Counts the identities of this host; the next one has the next number. */
  readonly generation: number;
}

/** The certificate of a host in a form that can be asked. */
export function certificateOf({ certificate }: TlsMaterial): X509Certificate {
  return new X509Certificate(certificate);
}

/**
 * Compares the parts of an identity with each other, but not with the clock.
 *
 * @throws IdentityError CERTIFICATE_INVALID naming what does not fit
 */
export function checkIdentity({ key, certificate, authorities, hostId }: Identity): void {
  const leaf = new X509Certificate(certificate);
  if (!leaf.checkPrivateKey(createPrivateKey(key))) throw invalid('is for another key');
  if (!isIssuedByAny(leaf, certificatesIn(authorities))) throw invalid('is from none of the CAs beside it');
  const name = peerNameOf(leaf);
  if (name?.role !== 'host' || name.id !== hostId)
    throw invalid(`is not that of host ${hostId}: ${leaf.subjectAltName ?? 'it names nobody'}`);
}

/**
 * Looks whether an identity can be used now; others would refuse it without saying why.
 *
 * @throws IdentityError CERTIFICATE_EXPIRED, CERTIFICATE_NOT_YET_VALID
 */
export function checkValidity(identity: Identity, now: Date): void {
  const certificate = certificateOf(identity);
  const problem = validityProblem(certificate, now);
  if (problem === null) return;
  const message = `the certificate of this host ${problem}`;
  if (now < certificate.validFromDate)
    throw new IdentityError('CERTIFICATE_NOT_YET_VALID', message, {
      hint: 'put the clock of this host right (timedatectl), then repeat the command',
    });
  throw new IdentityError('CERTIFICATE_EXPIRED', message, {
    hint: `if the clock is right: get a new token from the controller, then: stillpoint agent join ${identity.controller.address} --token-file FILE`,
  });
}

function invalid(message: string): IdentityError {
  return new IdentityError('CERTIFICATE_INVALID', `the certificate ${message}`);
}
