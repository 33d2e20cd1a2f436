/** What clients may take. A server on a socket that only one user can open still has to outlive that user's mistakes. */
export interface ServerLimits {
  /** Connections at a time; further ones are closed at once. */
  readonly connections: number;
  /** How long a client may take to open an export, in milliseconds. */
  readonly handshakeMs: number;
  /** Options before an export is opened. */
  readonly options: number;
  /** Requests of one connection at a time; further ones stay in the socket. */
  readonly requests: number;
  /**
   * What one connection may make the server hold: blocks that are read for it, and replies that it has not taken. A
   * single read that is larger than this, from a client without structured replies, is held whole.
   */
  readonly heldBytes: number;
  /** How far a sequential reader is read ahead of. */
  readonly readAheadBytes: number;
}

const MiB = 1024 * 1024;

/** QEMU keeps 16 requests at a server, libnbd's programs 64. */
export const defaultLimits: ServerLimits = {
  connections: 32,
  handshakeMs: 10_000,
  options: 256,
  requests: 64,
  heldBytes: 8 * MiB,
  readAheadBytes: 4 * MiB,
};

/** @throws RangeError for a limit that is no number of anything */
export function requireLimits(limits: ServerLimits): void {
  for (const [name, value] of Object.entries({ ...limits }))
    if (!Number.isSafeInteger(value) || value < (name === 'readAheadBytes' ? 0 : 1))
      throw new RangeError(`a limit of ${value} for ${name}`);
}
