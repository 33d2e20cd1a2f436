import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import * as z from 'zod';
import { isErrno } from '../../common/errors.ts';
import { currentBootId, isProcessAlive, thisProcess } from '../../common/processIdentity.ts';

/** What a session says of the process that announced it, beside the host and the process id. */
export const sessionOwnerSchema = z.object({
  startTicks: z.number(),
  bootId: z.string(),
  /** Of the host's installation; `null` where it has no id. */
  machine: z.string().nullable(),
});

export type SessionOwner = z.infer<typeof sessionOwnerSchema>;

/** The running process, as a session tells of it. */
export function thisSessionOwner(): SessionOwner {
  const { startTicks, bootId } = thisProcess();
  return { startTicks, bootId, machine: thisMachine() };
}

/**
 * Whether a process that announced a session is known to be dead. Only who can look for it knows: this host, in this
 * boot or a later one. One of an earlier version, which told less of itself, may be alive.
 */
export function isKnownDead({
  host,
  processId: pid,
  owner,
}: {
  readonly host: string;
  readonly processId: number;
  readonly owner?: SessionOwner | undefined;
}): boolean {
  if (owner === undefined || host !== hostname()) return false;
  if (owner.bootId === currentBootId()) return !isProcessAlive({ pid, ...owner });
  return owner.machine !== null && owner.machine === thisMachine();
}

/** machine-id(5) asks not to give the id itself away. */
function thisMachine(): string | null {
  try {
    const id = readFileSync('/etc/machine-id', 'utf8').trim();
    return id === '' ? null : createHmac('sha256', id).update('stillpoint/session').digest('hex');
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
}
