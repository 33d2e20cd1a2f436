import { createHash } from 'node:crypto';
import { statusOf } from './s3Failure.ts';

/* Pieces that several requests to an S3 server have in common. */

/** Name of the metadata in which an object has the token of the call that created it. */
const tokenName = 'stillpoint-create';

export function tokenField(token: string): { readonly Metadata: Record<string, string> } {
  return { Metadata: { [tokenName]: token } };
}

export function tokenOf(metadata: Readonly<Record<string, string>> | undefined): string | undefined {
  return metadata?.[tokenName];
}

/** A body with its length, and with the digest that the server compares it with. */
export function bodyFields(body: Buffer): {
  readonly Body: Buffer;
  readonly ContentLength: number;
  readonly ContentMD5: string;
} {
  const digest = createHash('md5').update(body).digest('base64');
  return { Body: body, ContentLength: body.length, ContentMD5: digest };
}

export function ifFreeField(ifFree: boolean): { readonly IfNoneMatch?: '*' } {
  return ifFree ? { IfNoneMatch: '*' } : {};
}

/** Has an object be under retention from its first moment on. */
export function retentionField(until: Date | undefined): {
  readonly ObjectLockMode?: 'COMPLIANCE';
  readonly ObjectLockRetainUntilDate?: Date;
} {
  return until === undefined ? {} : { ObjectLockMode: 'COMPLIANCE', ObjectLockRetainUntilDate: until };
}

/** Runs a request that may have `ifFreeField`: a condition that is not met is an answer. */
export async function putOrTaken(put: () => Promise<void>): Promise<'put' | 'taken'> {
  try {
    await put();
    return 'put';
  } catch (error) {
    if (statusOf(error) === 412) return 'taken';
    throw error;
  }
}
