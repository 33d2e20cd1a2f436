import type { Socket } from 'node:net';
import { ApiError } from './errors.ts';

/** The process at the other end of a unix socket, as it was when it connected. */
export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  /** Its other groups. */
  readonly groups: readonly number[];
}

/** Linux, asm-generic/socket.h. */
const solSocket = 1;
const soPeercred = 17;
const soPeergroups = 59;
/** `struct ucred`: three numbers of 32 bits. */
const ucredBytes = 12;
/** NGROUPS_MAX of Linux. */
const groupsMax = 65_536;

/** Reads who connected to a unix socket. @throws ApiError CALLER_DENIED where the system does not say */
export type ReadPeerCredentials = (socket: Socket) => PeerCredentials;

/** Loads what it takes to ask the system, so that a connection need not wait for that. */
export async function peerCredentialsReader(): Promise<ReadPeerCredentials> {
  const { default: koffi } = await import('koffi');
  const call = koffi
    .load('libc.so.6')
    .func('int getsockopt(int fd, int level, int name, void *value, void *length)');
  /** Bytes that were read, or -1. */
  const read = (descriptor: number, option: number, value: Buffer): number => {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(value.length);
    return call(descriptor, solSocket, option, value, length) === 0 ? length.readUInt32LE() : -1;
  };
  return (socket) => {
    const descriptor = descriptorOf(socket);
    const ucred = Buffer.alloc(ucredBytes);
    if (descriptor < 0 || read(descriptor, soPeercred, ucred) !== ucredBytes)
      throw new ApiError('CALLER_DENIED', 'the system does not say who connected');
    const groups = Buffer.alloc(groupsMax * 4);
    const groupBytes = Math.max(0, read(descriptor, soPeergroups, groups));
    return {
      pid: ucred.readInt32LE(0),
      uid: ucred.readUInt32LE(4),
      gid: ucred.readUInt32LE(8),
      groups: Array.from({ length: groupBytes / 4 }, (_, index) => groups.readUInt32LE(index * 4)),
    };
  };
}

/** Node has no public way to the descriptor of a connection; -1 for one that is closed. */
function descriptorOf(socket: Socket): number {
  const handle: unknown = '_handle' in socket ? socket._handle : undefined;
  const isOpen = typeof handle === 'object' && handle !== null && 'fd' in handle;
  return isOpen && typeof handle.fd === 'number' ? handle.fd : -1;
}
