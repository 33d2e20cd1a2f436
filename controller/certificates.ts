import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  verify,
  X509Certificate,
} from 'node:crypto';
import { CertificationRequest } from '@peculiar/asn1-csr';
import { AsnConvert, OctetString } from '@peculiar/asn1-schema';
import {
  AuthorityKeyIdentifier,
  BasicConstraints,
  Certificate,
  ExtendedKeyUsage,
  Extension,
  Extensions,
  GeneralName,
  id_ce_authorityKeyIdentifier,
  id_ce_basicConstraints,
  id_ce_extKeyUsage,
  id_ce_keyUsage,
  id_ce_subjectAltName,
  id_ce_subjectKeyIdentifier,
  id_kp_clientAuth,
  id_kp_serverAuth,
  KeyIdentifier,
  KeyUsage,
  KeyUsageFlags,
  type Name,
  SubjectAlternativeName,
  TBSCertificate,
  Validity,
  Version,
} from '@peculiar/asn1-x509';
import { messageOf } from '../common/errors.ts';
import { dnsNameOf, formatPeerName, type PeerName } from '../common/tls/peerName.ts';
import { arrayBufferOf, commonName, publicKeyInfo, signatureAlgorithm, signDer } from '../common/x509.ts';
import { CaError } from './caErrors.ts';

/** From when to when a certificate is valid. */
export interface ValidityPeriod {
  readonly notBefore: Date;
  readonly notAfter: Date;
}

/** A key with its certificate, both PEM. */
export interface CertifiedKey {
  readonly key: string;
  readonly certificate: string;
}

/** Makes a private key (EC P-256), PEM. */
export function makeKey(): string {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
}

/** Makes a CA that signs certificates of hosts and controllers, and no other CA. */
export function makeCa(name: string, validity: ValidityPeriod): CertifiedKey {
  const key = makeKey();
  const subject = commonName(`Stillpoint CA of ${name}`);
  const publicKey = createPublicKey(key);
  const certificate = sign(createPrivateKey(key), {
    serial: makeSerial(),
    issuer: subject,
    subject,
    publicKey,
    validity,
    extensions: [
      extension(id_ce_basicConstraints, new BasicConstraints({ cA: true, pathLenConstraint: 0 }), true),
      extension(id_ce_keyUsage, new KeyUsage(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign), true),
      extension(id_ce_subjectKeyIdentifier, keyIdentifierOf(publicKey)),
    ],
  });
  return { key, certificate };
}

/** Signs a certificate (PEM) with which its owner serves and calls. */
export function signCertificate(
  ca: CertifiedKey,
  name: PeerName,
  publicKey: KeyObject,
  { serial, ...validity }: ValidityPeriod & { readonly serial: string },
): string {
  const caKey = createPrivateKey(ca.key);
  const dNSName = dnsNameOf(name);
  const names = new SubjectAlternativeName([
    new GeneralName({ uniformResourceIdentifier: formatPeerName(name) }),
    ...(dNSName === null ? [] : [new GeneralName({ dNSName })]),
  ]);
  return sign(caKey, {
    serial,
    issuer: subjectOf(ca.certificate),
    subject: commonName(name.id),
    publicKey,
    validity,
    extensions: [
      extension(id_ce_basicConstraints, new BasicConstraints(), true),
      extension(id_ce_keyUsage, new KeyUsage(KeyUsageFlags.digitalSignature), true),
      extension(id_ce_extKeyUsage, new ExtendedKeyUsage([id_kp_serverAuth, id_kp_clientAuth])),
      extension(id_ce_subjectAltName, names),
      extension(
        id_ce_authorityKeyIdentifier,
        new AuthorityKeyIdentifier({ keyIdentifier: keyIdentifierOf(createPublicKey(caKey)) }),
      ),
    ],
  });
}

/** A random serial number as Node.js shows it: positive, without a zero in front (RFC 5280, 4.1.2.2). */
export function makeSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return bytes.toString('hex').toUpperCase();
}

/**
 * The key that a PKCS #10 request (DER) is about, whose owner has signed it. Nothing else in it counts.
 *
 * @throws CaError REQUEST_INVALID
 */
export function requestedKey(request: Uint8Array): KeyObject {
  try {
    const parsed = AsnConvert.parse(arrayBufferOf(request), CertificationRequest);
    const { certificationRequestInfo, certificationRequestInfoRaw, signature } = parsed;
    const der = Buffer.from(AsnConvert.serialize(certificationRequestInfo.subjectPKInfo));
    const key = createPublicKey({ key: der, type: 'spki', format: 'der' });
    if (key.asymmetricKeyType !== 'ec' || key.asymmetricKeyDetails?.namedCurve !== 'prime256v1')
      throw new Error('its key is not one of EC P-256');
    const signed = new Uint8Array(certificationRequestInfoRaw ?? new ArrayBuffer(0));
    if (!verify('sha256', signed, key, new Uint8Array(signature)))
      throw new Error('it is not signed with its own key');
    return key;
  } catch (error) {
    throw new CaError(
      'REQUEST_INVALID',
      `the request for a certificate cannot be used: ${messageOf(error)}`,
      {
        cause: error,
      },
    );
  }
}

interface Contents {
  readonly serial: string;
  readonly issuer: Name;
  readonly subject: Name;
  readonly publicKey: KeyObject;
  readonly validity: ValidityPeriod;
  readonly extensions: readonly Extension[];
}

function sign(
  key: KeyObject,
  { serial, issuer, subject, publicKey, validity, extensions }: Contents,
): string {
  const tbsCertificate = new TBSCertificate({
    version: Version.v3,
    serialNumber: arrayBufferOf(Buffer.from(serial, 'hex')),
    signature: signatureAlgorithm(),
    issuer,
    validity: new Validity(validity),
    subject,
    subjectPublicKeyInfo: publicKeyInfo(publicKey),
    extensions: new Extensions([...extensions]),
  });
  const certificate = new Certificate({
    tbsCertificate,
    signatureAlgorithm: signatureAlgorithm(),
    signatureValue: signDer(AsnConvert.serialize(tbsCertificate), key),
  });
  return new X509Certificate(Buffer.from(AsnConvert.serialize(certificate))).toString();
}

function extension(extnID: string, value: unknown, critical = false): Extension {
  return new Extension({ extnID, critical, extnValue: new OctetString(AsnConvert.serialize(value)) });
}

/** RFC 5280, 4.2.1.2 leaves open how it is made; it has only to be the same for the same key. */
function keyIdentifierOf(publicKey: KeyObject): KeyIdentifier {
  const digest = createHash('sha256')
    .update(new Uint8Array(publicKeyInfo(publicKey).subjectPublicKey))
    .digest();
  return new KeyIdentifier(arrayBufferOf(digest.subarray(0, 20)));
}

function subjectOf(pem: string): Name {
  const { raw } = new X509Certificate(pem);
  return AsnConvert.parse(arrayBufferOf(raw), Certificate).tbsCertificate.subject;
}
