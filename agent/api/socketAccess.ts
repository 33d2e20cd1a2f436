import type { Caller } from './caller.ts';
import { ApiError } from './errors.ts';
import type { PeerCredentials } from './peerCredentials.ts';

/** Who may use the socket. */
export interface SocketAccess {
  /** The service's own user. */
  readonly ownUid: number;
  /** Members of this group may; null: of none. */
  readonly gid: number | null;
}

/** The caller that a process is. @throws ApiError CALLER_DENIED */
export function admit({ pid, uid, gid, groups }: PeerCredentials, access: SocketAccess): Caller {
  const isMember = access.gid !== null && [gid, ...groups].includes(access.gid);
  const isPrivileged = uid === 0 || uid === access.ownUid;
  if (isPrivileged || isMember) return { kind: 'socket', name: `uid ${uid}`, isPrivileged, pid };
  throw new ApiError('CALLER_DENIED', `user ${uid} may not use the service of this host`, {
    hint: 'as root, or as a member of the group that agent.socketGroup names (after a new login)',
  });
}
