import { StorageError, type StorageErrorCode } from '../errors.ts';

/** What a failed request means. */
interface Meaning {
  readonly code: StorageErrorCode;
  /** Whether the same request can succeed in a moment. */
  readonly retryable: boolean;
  readonly hint: (place: S3Place) => string;
}

/** What errors tell of the place; nothing of it is secret. */
export interface S3Place {
  /** Takes out of a server's words what is secret, and what does not belong on a terminal. */
  readonly clean: (words: string) => string;
  readonly location: string;
  readonly endpoint: string;
  readonly bucket: string;
  readonly region: string;
  readonly accessKeyId: string;
}

const lookAgain = ({ endpoint }: S3Place): string => `curl -v ${endpoint}; try again when it answers`;
const lookAtKeys = ({ accessKeyId }: S3Place): string =>
  `check the key ${accessKeyId}, its secret and the region of the storage`;
const lookAtPolicy = ({ accessKeyId, bucket }: S3Place): string =>
  `give ${accessKeyId} the rights to list bucket ${bucket}, and to get, put and delete objects in it`;
const makeRoom = ({ location }: S3Place): string => `free space or raise the quota of ${location}`;
const lookElsewhere = ({ endpoint, region }: S3Place): string =>
  `the bucket is served elsewhere: correct endpoint (${endpoint}) and region (${region})`;
const lookAtServer = ({ endpoint }: S3Place): string => `look into the log of the server at ${endpoint}`;

const unreachable: Meaning = { code: 'STORAGE_UNREACHABLE', retryable: true, hint: lookAgain };
const denied: Meaning = { code: 'STORAGE_DENIED', retryable: false, hint: lookAtPolicy };
const keysRefused: Meaning = { code: 'STORAGE_DENIED', retryable: false, hint: lookAtKeys };
const full: Meaning = { code: 'STORAGE_FULL', retryable: false, hint: makeRoom };
const moved: Meaning = { code: 'STORAGE_UNREACHABLE', retryable: false, hint: lookElsewhere };
const unusable: Meaning = { code: 'STORAGE_FAILED', retryable: true, hint: lookAgain };
const failed: Meaning = { code: 'STORAGE_FAILED', retryable: false, hint: lookAtServer };

/** An answer that no S3 server gives: cut off, altered on the way, or somebody else's. */
export class UnusableAnswer extends Error {
  override readonly name = 'UnusableAnswer';

  /** @param what the answer is */
  constructor(what: string) {
    super(`the server's answer cannot be used: ${what}`);
  }
}

/** Codes of S3 errors, where the status of HTTP does not say enough. */
const ofCode: Readonly<Record<string, Meaning>> = {
  AuthorizationHeaderMalformed: keysRefused,
  ExpiredToken: keysRefused,
  InvalidAccessKeyId: keysRefused,
  InvalidToken: keysRefused,
  SignatureDoesNotMatch: keysRefused,
  // The library corrects its clock by the answer.
  RequestTimeTooSkewed: {
    ...keysRefused,
    retryable: true,
    hint: () => 'timedatectl; set the clock of this host',
  },
  NoSuchBucket: {
    code: 'STORAGE_UNREACHABLE',
    retryable: false,
    hint: ({ bucket }) => `create the bucket ${bucket}, or correct its name`,
  },
  QuotaExceeded: full,
  XMinioStorageFull: full,
  // What arrived was not what was sent.
  BadDigest: { ...failed, retryable: true },
  IncompleteBody: unreachable,
  RequestTimeout: unreachable,
};

const ofStatus: Readonly<Record<number, Meaning>> = {
  301: moved,
  302: moved,
  307: moved,
  308: moved,
  401: denied,
  403: denied,
  408: unreachable,
  // Somebody else is at it: nothing has happened.
  409: unreachable,
  429: unreachable,
  500: unreachable,
  502: unreachable,
  503: unreachable,
  504: unreachable,
  507: full,
};

const networkCodes = new Set([
  'ECONNABORTED',
  'ECONNREFUSED',
  'ECONNRESET',
  'EAI_AGAIN',
  'EHOSTDOWN',
  'EHOSTUNREACH',
  'ENETDOWN',
  'ENETUNREACH',
  'ENOTFOUND',
  'EPIPE',
  'EPROTO',
  'ETIMEDOUT',
  'ERR_STREAM_PREMATURE_CLOSE',
]);

/** The status of HTTP that came with an error; `undefined` when no answer came. */
export function statusOf(error: unknown): number | undefined {
  if (!(error instanceof Error) || !('$metadata' in error)) return undefined;
  const metadata: unknown = error.$metadata;
  if (typeof metadata !== 'object' || metadata === null || !('httpStatusCode' in metadata)) return undefined;
  return typeof metadata.httpStatusCode === 'number' ? metadata.httpStatusCode : undefined;
}

/** Whether somebody is there, whatever is wrong with what he said. */
export function hasAnswered(error: unknown): boolean {
  return error instanceof UnusableAnswer || statusOf(error) !== undefined;
}

/** Whether the server said of an object itself that it is not there: a 404 alone may come from anything on the way. */
export function isAbsence(error: unknown): boolean {
  return error instanceof Error && error.name === 'NoSuchKey' && statusOf(error) === 404;
}

/**
 * What went wrong, as an error of a storage; anything that is neither an answer nor the network's fault stays what it
 * is. The library's own errors are not kept as causes: they hold the request with its signature.
 */
export function storageErrorOf(error: unknown, what: string, place: S3Place): unknown {
  if (!(error instanceof Error) || error instanceof StorageError) return error;
  const status = statusOf(error);
  const meaning = meaningOf(error, status);
  if (meaning === null) return error;
  // The library adds lines on where developers should look.
  const [message = ''] = error.message.split('\n');
  const said = status === undefined ? message : `${status} ${error.name}: ${message}`;
  return new StorageError(meaning.code, `${what} at ${place.location}: ${place.clean(said)}`, {
    hint: meaning.hint(place),
    retryable: meaning.retryable,
  });
}

function meaningOf(error: Error, status: number | undefined): Meaning | null {
  if (error instanceof UnusableAnswer) return unusable;
  if (status !== undefined) {
    // The library could not read a success.
    if (status < 300) return unusable;
    const named = Object.hasOwn(ofCode, error.name) ? ofCode[error.name] : undefined;
    // Without this mark it is not the server's error that the library tells, but that it could not read it.
    return named ?? ofStatus[status] ?? ('$fault' in error ? failed : unusable);
  }
  const code = 'code' in error ? String(error.code) : '';
  if (isCertificateError(code)) {
    const hint = ({ endpoint }: S3Place): string =>
      `openssl s_client -connect ${new URL(endpoint).host}; set caFile to the certificate that has signed it`;
    return { code: 'STORAGE_UNREACHABLE', retryable: false, hint };
  }
  // Node's names for what is not HTTP, and not TLS.
  if (code.startsWith('HPE_')) return unusable;
  const isNetwork = networkCodes.has(code) || code.startsWith('ERR_SSL_') || error.name === 'TimeoutError';
  return isNetwork ? unreachable : null;
}

/** The names that OpenSSL gives what is wrong with a certificate, and Node's. */
function isCertificateError(code: string): boolean {
  return code.includes('CERT') || code === 'UNABLE_TO_VERIFY_LEAF_SIGNATURE';
}
