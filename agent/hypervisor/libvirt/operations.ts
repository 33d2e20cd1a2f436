import { backupOperations } from './backupOperations.ts';
import { checkpointOperations } from './checkpointOperations.ts';
import type { Connection } from './connection.ts';
import { eventOperations } from './eventOperations.ts';
import type { EventSink } from './eventOperations.ts';
import { guestOperations } from './guestOperations.ts';
import { hostOperations } from './hostOperations.ts';
import { isolatedOperations } from './isolatedOperations.ts';
import { machineOperations } from './machineOperations.ts';
import { processorOperations } from './processorOperations.ts';
import { stateOperations } from './stateOperations.ts';
import { volumeOperations } from './volumeOperations.ts';

/** Everything that a child process can be asked to do; each blocks it until libvirt has answered. */
export function makeOperations(connection: Connection, sink: EventSink) {
  return {
    ...machineOperations(connection),
    ...stateOperations(connection),
    ...volumeOperations(connection),
    ...backupOperations(connection),
    ...checkpointOperations(connection),
    ...guestOperations(connection),
    ...hostOperations(connection),
    ...isolatedOperations(connection),
    ...processorOperations(connection),
    ...eventOperations(connection, sink),
  };
}

export type Operations = ReturnType<typeof makeOperations>;
