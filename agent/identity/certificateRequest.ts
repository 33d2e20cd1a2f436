import { generateKeyPairSync } from 'node:crypto';
import { CertificationRequest, CertificationRequestInfo } from '@peculiar/asn1-csr';
import { AsnConvert } from '@peculiar/asn1-schema';
import { commonName, publicKeyInfo, signatureAlgorithm, signDer } from '../../common/x509.ts';

/** A key and the request for a certificate of it. */
export interface CertificateRequest {
  /** Private key, PEM (PKCS #8). */
  readonly key: string;
  /** PKCS #10, DER. */
  readonly request: Uint8Array;
}

/** Makes a key (EC P-256) and a request for a certificate of it (RFC 2986) that names the host. */
export function makeCertificateRequest(hostId: string): CertificateRequest {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const certificationRequestInfo = new CertificationRequestInfo({
    subject: commonName(hostId),
    subjectPKInfo: publicKeyInfo(privateKey),
  });
  const request = new CertificationRequest({
    certificationRequestInfo,
    signatureAlgorithm: signatureAlgorithm(),
    signature: signDer(AsnConvert.serialize(certificationRequestInfo), privateKey),
  });
  return {
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    request: new Uint8Array(AsnConvert.serialize(request)),
  };
}
