import { createPublicKey, type KeyObject, sign } from 'node:crypto';
import { AsnConvert } from '@peculiar/asn1-schema';
import {
  AlgorithmIdentifier,
  AttributeTypeAndValue,
  AttributeValue,
  Name,
  RelativeDistinguishedName,
  SubjectPublicKeyInfo,
} from '@peculiar/asn1-x509';

/*
 * Parts of certificates and of requests for them, which node:crypto reads but does not make. All keys are EC P-256, all
 * signatures ECDSA with SHA-256 (RFC 5758, 3.2).
 */

const commonNameType = '2.5.4.3';
const ecdsaWithSha256 = '1.2.840.10045.4.3.2';

/** How all that is made here is signed. */
export function signatureAlgorithm(): AlgorithmIdentifier {
  return new AlgorithmIdentifier({ algorithm: ecdsaWithSha256 });
}

/** The signature of a DER text. */
export function signDer(der: ArrayBuffer, privateKey: KeyObject): ArrayBuffer {
  return arrayBufferOf(sign('sha256', new Uint8Array(der), privateKey));
}

/** A distinguished name with nothing but a common name. */
export function commonName(text: string): Name {
  const value = new AttributeValue({ utf8String: text });
  return new Name([
    new RelativeDistinguishedName([new AttributeTypeAndValue({ type: commonNameType, value })]),
  ]);
}

/** The public key of a private or public one, as it stands in a certificate. */
export function publicKeyInfo(key: KeyObject): SubjectPublicKeyInfo {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  return AsnConvert.parse(publicKey.export({ type: 'spki', format: 'der' }), SubjectPublicKeyInfo);
}

/** A copy in a buffer of its own: Node.js's buffers may share theirs. */
export function arrayBufferOf(bytes: Uint8Array): ArrayBuffer {
  return new Uint8Array(bytes).buffer;
}
