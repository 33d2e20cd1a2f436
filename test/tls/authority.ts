import { createPublicKey } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { makeCertificateRequest } from '../../agent/identity/certificateRequest.ts';
import type { Identity } from '../../agent/identity/identity.ts';
import { newId } from '../../common/ids.ts';
import type { TlsMaterial } from '../../common/tls/material.ts';
import type { PeerName } from '../../common/tls/peerName.ts';
import { CertificateAuthority, type CaOptions } from '../../controller/ca.ts';
import {
  type CertifiedKey,
  makeCa,
  makeKey,
  makeSerial,
  signCertificate,
  type ValidityPeriod,
} from '../../controller/certificates.ts';

const hourMs = 3_600_000;

/** A directory of a test, removed after it. */
export async function temporaryDirectory(t: Test, purpose: string): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), `stillpoint-${purpose}-`));
  t.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

/** A CA of a controller in a directory of its own. */
export async function openAuthority(
  t: Test,
  options: CaOptions = {},
  directory?: string,
): Promise<CertificateAuthority> {
  const ca = await CertificateAuthority.open(directory ?? (await temporaryDirectory(t, 'ca')), options);
  t.teardown(() => ca[Symbol.dispose]());
  return ca;
}

/** What a host has when it has joined, without a network. */
export function enrolHost(ca: CertificateAuthority, hostId: string = newId()): Identity {
  const { key, request } = makeCertificateRequest(hostId);
  const token = ca.issueToken();
  const certificate = ca.enrol({ token, certificateRequest: request, hostId });
  return {
    key,
    certificate,
    authorities: ca.certificate,
    hostId,
    controller: { name: ca.name, address: '127.0.0.1:1' },
  };
}

/** Signs certificates as a controller's CA never would: of any name, for any time. */
export class FreeAuthority {
  readonly #ca: CertifiedKey = makeCa('test', validityOfHours(-48, 48));

  get certificate(): string {
    return this.#ca.certificate;
  }

  /** @param hours from when to when it is valid, counted from now */
  sign(name: PeerName, hours: readonly [number, number] = [-1, 1]): TlsMaterial {
    const key = makeKey();
    const validity = { serial: makeSerial(), ...validityOfHours(...hours) };
    const certificate = signCertificate(this.#ca, name, createPublicKey(key), validity);
    return { key, certificate, authorities: this.#ca.certificate };
  }
}

function validityOfHours(from: number, to: number): ValidityPeriod {
  const now = Date.now();
  return { notBefore: new Date(now + from * hourMs), notAfter: new Date(now + to * hourMs) };
}
