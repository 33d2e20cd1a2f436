import { createHash, createPublicKey, randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isErrno } from '../common/errors.ts';
import { isUuid } from '../common/ids.ts';
import { makeDirectoryDurable } from '../common/files.ts';
import type { TlsMaterial } from '../common/tls/material.ts';
import { peerIdPattern } from '../common/tls/peerName.ts';
import { makeWholeDirectory } from '../common/wholeDirectory.ts';
import { CaError } from './caErrors.ts';
import { CaRecords, type CertificateRecord } from './caRecords.ts';
import {
  type CertifiedKey,
  makeCa,
  makeKey,
  makeSerial,
  requestedKey,
  signCertificate,
  type ValidityPeriod,
} from './certificates.ts';

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;

/** How long things are valid. */
export interface CaLifetimes {
  readonly caMs: number;
  readonly hostMs: number;
  /** Short: a host that is cut off from its controller does not hear that one was revoked. */
  readonly controllerMs: number;
  readonly tokenMs: number;
}

const usualLifetimes: CaLifetimes = {
  caMs: 3650 * dayMs,
  hostMs: 90 * dayMs,
  controllerMs: 7 * dayMs,
  tokenMs: hourMs,
};

/** Certificates are valid from a little before they are made: clocks differ. */
const backdateMs = 5 * 60_000;

export interface CaOptions {
  /** Name of the controller, in its certificates; it stays what it is when the CA is made. `controller` unless told. */
  readonly name?: string | undefined;
  readonly lifetimes?: Partial<CaLifetimes> | undefined;
  readonly now?: (() => Date) | undefined;
}

/** Asks for the first certificate of a host. */
export interface EnrolmentRequest {
  readonly token: string;
  /** PKCS #10, DER. */
  readonly certificateRequest: Uint8Array;
  readonly hostId: string;
}

/**
 * The certificate authority of a controller: what it signs is a host of this controller, or the controller. Its key is
 * a file that only its owner can read; tokens are kept as hashes.
 */
export class CertificateAuthority implements Disposable {
  readonly name: string;
  /** Certificate of the CA, PEM. */
  readonly certificate: string;
  readonly #ca: NamedCa;
  readonly #records: CaRecords;
  readonly #lifetimes: CaLifetimes;
  readonly #now: () => Date;

  private constructor(ca: NamedCa, records: CaRecords, options: CaOptions) {
    this.name = ca.name;
    this.certificate = ca.certificate;
    this.#ca = ca;
    this.#records = records;
    this.#lifetimes = { ...usualLifetimes, ...options.lifetimes };
    this.#now = options.now ?? (() => new Date());
  }

  /**
   * Opens the CA in a directory, and makes it there at the first time.
   * @throws RangeError when the name of the controller cannot stand in a certificate; the system's errors
   */
  static async open(directory: string, options: CaOptions = {}): Promise<CertificateAuthority> {
    const { name = 'controller', now = () => new Date(), lifetimes } = options;
    if (!peerIdPattern.test(name)) throw new RangeError(`${name} is no name of letters, digits, ., _ and -`);
    await makeDirectoryDurable(directory, 0o700);
    const validity = validityFrom(now(), lifetimes?.caMs ?? usualLifetimes.caMs);
    const ca = await keptCa(join(directory, 'ca'), () => ({ name, ...makeCa(name, validity) }));
    return new CertificateAuthority(ca, new CaRecords(join(directory, 'ca.sqlite')), options);
  }

  [Symbol.dispose](): void {
    this.#records[Symbol.dispose]();
  }

  /**
   * Makes a one-time token; it is nowhere but in what this returns.
   * @param options.hostId only this host may use it, also where it has joined before
   */
  issueToken(options: { readonly hostId?: string | undefined; readonly validMs?: number } = {}): string {
    const token = randomBytes(32).toString('base64url');
    const expiresAt = new Date(this.#now().getTime() + (options.validMs ?? this.#lifetimes.tokenMs));
    this.#records.addToken(sha256(token), options.hostId ?? null, expiresAt);
    return token;
  }

  /**
   * Gives a host its first certificate (PEM) for a token; the same request for the same token is answered with the same
   * certificate until the token expires.
   * @throws CaError
   */
  enrol({ token, certificateRequest, hostId }: EnrolmentRequest): string {
    if (!isUuid(hostId) || hostId !== hostId.toLowerCase())
      throw new CaError('REQUEST_INVALID', 'the identifier of the host is no UUID in lower case');
    const now = this.#now();
    const requestHash = sha256(certificateRequest);
    const redemption = { tokenHash: sha256(token), requestHash, hostId, now };
    // Whoever has no token is not worth a look at his request, nor a signature.
    const answered = this.#records.look(redemption);
    if (answered !== null) return answered;
    return this.#records.redeem(redemption, this.#sign(hostId, certificateRequest, requestHash, now));
  }

  /**
   * Gives a host its next certificate (PEM). The one that it has stays valid until it expires.
   * @param hostId of the certificate that the host has shown
   * @throws CaError
   */
  renew(hostId: string, certificateRequest: Uint8Array): string {
    const requestHash = sha256(certificateRequest);
    const answered = this.#records.findAnswer(hostId, requestHash);
    if (answered !== null) return answered;
    const record = this.#sign(hostId, certificateRequest, requestHash, this.#now());
    this.#records.add(record);
    return record.certificate;
  }

  /** A new key of the controller with a new certificate. The key is in memory only. */
  controllerMaterial(): TlsMaterial {
    const key = makeKey();
    const serial = makeSerial();
    const name = { role: 'controller', id: this.name } as const;
    const validity = validityFrom(this.#now(), this.#lifetimes.controllerMs);
    const certificate = signCertificate(this.#ca, name, createPublicKey(key), { serial, ...validity });
    const { notAfter } = validity;
    this.#records.add({ ...name, serial, certificate, requestHash: null, notAfter });
    return { key, certificate, authorities: this.certificate };
  }

  /** True for a certificate that this CA has given out and not revoked. */
  isGood(serial: string): boolean {
    return this.#records.isGood(serial);
  }

  /**
   * From now on no certificate of this host counts, such as one that was stolen.
   * @throws CaError CERTIFICATE_UNKNOWN when it has none
   */
  revokeHost(hostId: string): void {
    if (this.#records.revokeHost(hostId, this.#now()) === 0)
      throw new CaError('CERTIFICATE_UNKNOWN', `host ${hostId} has no certificate that counts`);
  }

  /**
   * From now on one certificate does not count, of a host or of a controller.
   * @throws CaError CERTIFICATE_UNKNOWN
   */
  revoke(serial: string): void {
    if (this.#records.revoke(serial, this.#now()) === 0)
      throw new CaError('CERTIFICATE_UNKNOWN', `no certificate that counts has the serial number ${serial}`);
  }

  /** Serial numbers of the revoked certificates of controllers that have not expired. */
  revokedControllers(): readonly string[] {
    return this.#records.revokedControllers(this.#now());
  }

  #sign(hostId: string, certificateRequest: Uint8Array, requestHash: string, now: Date): CertificateRecord {
    const name = { role: 'host', id: hostId } as const;
    const serial = makeSerial();
    const validity = validityFrom(now, this.#lifetimes.hostMs);
    const key = requestedKey(certificateRequest);
    const certificate = signCertificate(this.#ca, name, key, { serial, ...validity });
    return { ...name, serial, certificate, requestHash, notAfter: validity.notAfter };
  }
}

function validityFrom(now: Date, lifetimeMs: number): ValidityPeriod {
  return {
    notBefore: new Date(now.getTime() - backdateMs),
    notAfter: new Date(now.getTime() + lifetimeMs),
  };
}

function sha256(data: string | Uint8Array): string {
  return createHash('sha256').update(data).digest('hex');
}

interface NamedCa extends CertifiedKey {
  readonly name: string;
}

async function keptCa(directory: string, make: () => NamedCa): Promise<NamedCa> {
  try {
    return await readCa(directory);
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
  }
  const { name, key, certificate } = make();
  const files = new Map([
    ['name', name],
    ['key.pem', key],
    ['certificate.pem', certificate],
  ]);
  try {
    await makeWholeDirectory(directory, files);
  } catch (error) {
    // Another process has made it meanwhile: that one counts.
    if (!isErrno(error, 'ENOTEMPTY') && !isErrno(error, 'EEXIST')) throw error;
  }
  return readCa(directory);
}

async function readCa(directory: string): Promise<NamedCa> {
  const text = (name: string): Promise<string> => readFile(join(directory, name), 'utf8');
  return { name: await text('name'), key: await text('key.pem'), certificate: await text('certificate.pem') };
}
