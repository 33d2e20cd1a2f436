import { once } from 'node:events';
import { X509Certificate } from 'node:crypto';
import { connect, type TLSSocket } from 'node:tls';
import { messageOf } from '../../common/errors.ts';
import { parseHostPort } from '../../common/hostPort.ts';
import { isIssuedByAny, validityProblem } from '../../common/tls/material.ts';
import { peerNameOf } from '../../common/tls/peerName.ts';
import { controllerServerName } from './controllerChannel.ts';
import { EnrolmentError } from './errors.ts';

/** The CA that stands behind whoever answers at an address. Nothing says yet that it is the right one. */
export interface OfferedAuthority {
  /** PEM. */
  readonly certificate: string;
  /** SHA-256 of the certificate, as `AB:CD:…`. */
  readonly fingerprint: string;
  /** Name of the controller, as its own certificate says. */
  readonly controllerName: string;
}

const timeoutMs = 15_000;

/**
 * Asks who answers at an address, without trusting or telling it anything.
 *
 * @param address `HOST:PORT`
 * @throws EnrolmentError CONTROLLER_UNREACHABLE, CONTROLLER_UNTRUSTED
 */
export async function askForAuthority(
  address: string,
  options: { readonly now: Date; readonly signal?: AbortSignal },
): Promise<OfferedAuthority> {
  const socket = connect({
    ...parseHostPort(address),
    servername: controllerServerName,
    ALPNProtocols: ['h2'],
    minVersion: 'TLSv1.3',
    // It is only looked who that is: the connection ends here, and the next one trusts this CA alone.
    rejectUnauthorized: false,
  });
  try {
    const limit = AbortSignal.timeout(timeoutMs);
    const signal = options.signal === undefined ? limit : AbortSignal.any([limit, options.signal]);
    await once(socket, 'secureConnect', { signal });
    return offeredBy(socket, address, options.now);
  } catch (error) {
    if (error instanceof EnrolmentError) throw error;
    options.signal?.throwIfAborted();
    throw new EnrolmentError(
      'CONTROLLER_UNREACHABLE',
      `no controller answers at ${address}: ${messageOf(error)}`,
      {
        cause: error,
        retryable: true,
        hint: 'compare the address and the port with those of the controller',
      },
    );
  } finally {
    socket.destroy();
  }
}

function offeredBy(socket: TLSSocket, address: string, now: Date): OfferedAuthority {
  const shown = socket.getPeerCertificate(true);
  const leaf = new X509Certificate(shown.raw);
  const name = peerNameOf(leaf);
  if (name?.role !== 'controller')
    throw untrusted(`${address} is no controller: its certificate names ${leaf.subjectAltName ?? 'nobody'}`);
  const issuer: { readonly raw: Buffer } | undefined = shown.issuerCertificate;
  const authority = issuer === undefined ? null : new X509Certificate(issuer.raw);
  if (authority === null || !isIssuedByAny(leaf, [authority]))
    throw untrusted(`${address} does not show the CA of its certificate`);
  const problem = validityProblem(leaf, now) ?? validityProblem(authority, now);
  if (problem !== null)
    throw new EnrolmentError(
      'CONTROLLER_UNTRUSTED',
      `the certificate of the controller at ${address} ${problem}`,
      {
        hint: 'compare the clocks of this host and of the controller (timedatectl), then repeat the command',
      },
    );
  return {
    certificate: authority.toString(),
    fingerprint: authority.fingerprint256,
    controllerName: name.id,
  };
}

function untrusted(message: string): EnrolmentError {
  return new EnrolmentError('CONTROLLER_UNTRUSTED', message, {
    hint: 'nothing was sent; compare the address with that of the controller',
  });
}

/**
 * True when two fingerprints are the same, however they are written: with or without colons, in capitals or not, after
 * `SHA256:` or `sha256=`.
 */
export function isSameFingerprint(a: string, b: string): boolean {
  const digitsOf = (text: string): string =>
    text
      .replace(/^sha-?256[:=]/i, '')
      .replaceAll(/[:\s]/g, '')
      .toLowerCase();
  return digitsOf(a) === digitsOf(b);
}
