import type { BackupCopy as Copy, StoredBackup } from '../backupCopies.ts';
import { storedBytes } from '../backupCopies.ts';
import {
  type Backup,
  type BackupCopy,
  BackupMode,
  BackupState,
  type BackupVerification,
  Consistency,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { Verification } from '../../storage/verification.ts';
import { backupModeValues, consistencyValues } from './enums.ts';

/**
 * A backup as a message.
 * @param options.withManifest it can be long: of one backup only
 */
export function backupMessage(
  { entry, state, storages, localOnly }: StoredBackup,
  options: { readonly withManifest: boolean },
): Backup {
  const { id, machine, pointInTime, problem, manifest } = entry;
  return {
    id: id ?? '',
    machine: { uuid: machine.uuid ?? '', name: machine.name },
    pointInTime: new Date(pointInTime),
    state: stateValue(state),
    problem: problem ?? '',
    mode: manifest === null ? BackupMode.BACKUP_MODE_UNSPECIFIED : backupModeValues[manifest.mode],
    modeReason: manifest?.modeReason ?? '',
    consistency:
      manifest === null ? Consistency.CONSISTENCY_UNSPECIFIED : consistencyValues[manifest.consistency],
    pauseMs: manifest?.pauseMs ?? undefined,
    storedBytes: BigInt(storedBytes(entry) ?? 0),
    protected: storages.some((copy) => copy.protected),
    localOnly,
    labels: { ...manifest?.labels },
    copies: storages.map(copyMessage),
    manifestJson: options.withManifest && manifest !== null ? JSON.stringify(manifest) : '',
  };
}

function stateValue(state: 'Active' | 'Killed'): BackupState {
  return state === 'Active' ? BackupState.BACKUP_STATE_ACTIVE : BackupState.BACKUP_STATE_KILLED;
}

function copyMessage(copy: Copy): BackupCopy {
  return {
    storage: copy.name,
    location: copy.directory,
    local: copy.local,
    state: stateValue(copy.state),
    problem: copy.problem ?? '',
    protected: copy.protected,
    protectedReason: copy.protectedReason ?? '',
    lockedUntil: copy.lockedUntil === null ? undefined : new Date(copy.lockedUntil),
    verification: copy.verified === null ? undefined : verificationMessage(copy.verified),
  };
}

function verificationMessage(verified: Verification): BackupVerification {
  const { at, ok, start, evidence, detail, durationMs, picture } = verified;
  return {
    verifiedAt: new Date(at),
    ok,
    start,
    evidence: evidence ?? '',
    detail,
    durationMs,
    picture: picture ?? '',
  };
}
