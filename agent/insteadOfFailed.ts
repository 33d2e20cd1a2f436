import type { BackupFacts } from './backup/facts.ts';
import type { LiveFacts } from './backup/liveFacts.ts';
import type { ReadFacts } from './backup/readFacts.ts';
import { isDecidedByAuto } from './backupMode.ts';
import type { BackupRequest } from './backupRequests.ts';
import type { SnapshotErrorCode } from './snapshot/errors.ts';
import { targetsOfChoice } from './storageGroups.ts';

/** With them a job says, before it has done anything, that the machine was started or shut off since it was looked at. */
const changedMeanwhile: ReadonlySet<string> = new Set<SnapshotErrorCode>(['MACHINE_OFF', 'MACHINE_RUNNING']);

/** The error of a job that has failed. */
interface Failure {
  readonly code: string;
  readonly message: string;
}

/**
 * The backup to make at once instead of one that has failed; `undefined`: the failure stands.
 * - A guest whose memory could not be taken while it ran: mode `disk`, where its policy says so.
 * - A machine that was started or shut off after `auto` was decided: `auto`, decided again.
 */
export function insteadOfFailed(
  facts: BackupFacts | LiveFacts | ReadFacts,
  { code, message }: Failure,
): BackupRequest | undefined {
  const { machine, settings } = facts;
  const again = {
    machine: machine.uuid,
    storages: targetsOfChoice(settings),
    labels: settings.labels,
    reread: settings.mode !== 'save' && settings.rereadReason !== null,
  };
  if (code === 'MEMORY_NOT_CONVERGING' && settings.mode === 'live' && settings.whenNotConverging === 'disk')
    return { ...again, mode: 'disk', modeReason: `mode live was given up: ${message}` };
  if (changedMeanwhile.has(code) && isDecidedByAuto(settings.modeReason)) return { ...again, mode: 'auto' };
  return undefined;
}
