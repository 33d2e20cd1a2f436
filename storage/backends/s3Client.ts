import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import type { S3 } from '@aws-sdk/client-s3';
import { sendContentMd5 } from './s3ContentMd5.ts';
import { readCaFile, type S3Limits, type S3Settings } from './s3Settings.ts';

/**
 * Makes the library's client. Connects to nothing yet.
 *
 * Rejects with STORAGE_SETTINGS_INVALID when the CA file is unusable.
 */
export async function openS3Client(settings: S3Settings, region: string, limits: S3Limits): Promise<S3> {
  // It takes 30 MiB and a third of a second, so only who uses it loads it.
  const library = await import('@aws-sdk/client-s3');
  const { localAddress } = settings;
  const { accessKeyId, secretAccessKey, sessionToken } = settings.credentials;
  const ca = await readCaFile(settings.caFile);
  const from = localAddress === undefined ? {} : { localAddress };
  const pool = { keepAlive: true, maxSockets: limits.concurrency, ...from };
  const s3 = new library.S3({
    endpoint: settings.endpoint,
    region,
    forcePathStyle: settings.addressing !== 'virtualHost',
    credentials: { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) },
    // Who repeats a request must know that it did, see s3Creation.ts.
    maxAttempts: 1,
    // Newer checksums are refused, or taken and not compared, by many servers; all compare Content-MD5.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    // With it the library would make connections of its own, which do not know our certificates.
    expectContinueHeader: false,
    // Nobody else is to get what is signed for this server.
    followRegionRedirects: false,
    // Otherwise taken from the environment.
    useFipsEndpoint: false,
    useDualstackEndpoint: false,
    useArnRegion: false,
    requestHandler: {
      connectionTimeout: limits.silenceMs,
      socketTimeout: limits.silenceMs,
      httpAgent: new HttpAgent(pool),
      httpsAgent: new HttpsAgent({ ...pool, ...(ca === undefined ? {} : { ca }) }),
    },
  });
  sendContentMd5(s3);
  return s3;
}
