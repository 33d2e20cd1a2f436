/** Who is at the other end of a connection, as its listener has found out. */
export interface Caller {
  readonly kind: 'socket' | 'controller';
  /** `uid 0` of a process on this host, or the name in the certificate of a controller. */
  readonly name: string;
  /** It is root, or the service's own user: it may do whatever the service may. */
  readonly isPrivileged?: boolean | undefined;
  /** The process, of a caller on this host; for the log only, it may be gone. */
  readonly pid?: number | undefined;
}

/** What keeps the idempotency keys of callers apart. */
export function scopeOf({ kind, name }: Caller): string {
  return `${kind}:${name}`;
}
