import { StillpointError } from '../common/errors.ts';

/** Closed set of what can go wrong between us and an NBD server. */
export type NbdErrorCode =
  /** Nobody listens at the socket, or we may not connect to it. */
  | 'NBD_UNREACHABLE'
  /** The server has no export of this name. */
  | 'NBD_EXPORT_NOT_FOUND'
  /** The export does not offer a metadata context that was asked for. */
  | 'NBD_CONTEXT_MISSING'
  /** The server said something that the protocol rules out. The connection is dead afterwards. */
  | 'NBD_PROTOCOL'
  /** The server refused, with its reason: an option of the negotiation, or a request (`errno`). */
  | 'NBD_SERVER_ERROR'
  /** No answer within the deadline. The connection is dead afterwards. */
  | 'NBD_TIMEOUT'
  /** The connection has ended, by the server or by us. */
  | 'NBD_CLOSED'
  /** The caller asked for bytes that the volume does not have. */
  | 'NBD_RANGE_INVALID'
  /** Our server cannot listen there: the path is too long, taken, or not ours to make. */
  | 'NBD_SOCKET_UNUSABLE'
  /** What our server serves could not be read; the client that asked has got EIO. */
  | 'NBD_SOURCE_FAILED';

/** An error of the NBD client or of our NBD server. */
export class NbdError extends StillpointError<NbdErrorCode> {
  /** The error number that the server sent with a refused request, as the protocol numbers them. */
  readonly errno: number | undefined;

  constructor(
    code: NbdErrorCode,
    message: string,
    options: {
      readonly hint?: string | undefined;
      readonly cause?: unknown;
      readonly retryable?: boolean | undefined;
      readonly errno?: number | undefined;
    } = {},
  ) {
    super(message, { code, hint: options.hint, cause: options.cause, retryable: options.retryable });
    this.errno = options.errno;
  }
}

/** The server broke the protocol: what it said cannot be trusted from here on. */
export function protocolError(message: string): NbdError {
  return new NbdError('NBD_PROTOCOL', message);
}

/** The protocol's error numbers; they are Linux's. */
const errnoNames: ReadonlyMap<number, string> = new Map([
  [1, 'EPERM'],
  [5, 'EIO'],
  [12, 'ENOMEM'],
  [22, 'EINVAL'],
  [28, 'ENOSPC'],
  [75, 'EOVERFLOW'],
  [95, 'ENOTSUP'],
  [108, 'ESHUTDOWN'],
]);
/** ENOMEM and ESHUTDOWN pass; the others say something about the volume or the request. */
const passing: readonly number[] = [12, 108];

/** A request that the server refused. `message` is the server's own text, empty where it gave none. */
export function serverError(what: string, errno: number, message: string): NbdError {
  const name = errnoNames.get(errno) ?? `error ${errno}`;
  const text = message === '' ? '' : `: ${message}`;
  return new NbdError('NBD_SERVER_ERROR', `the server refused to ${what} (${name}${text})`, {
    errno,
    retryable: passing.includes(errno),
  });
}
