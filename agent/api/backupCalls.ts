import { errorRecord, StillpointError } from '../../common/errors.ts';
import {
  Backup,
  type GetBackupRequest,
  type GetBackupResponse,
  type ListBackupsRequest,
  type ListBackupsResponse,
  type StartBackupRequest,
  type StartBackupResponse,
  type StartedBackup,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { BackupEntry, Storage } from '../../storage/storage.ts';
import { backupOf, groupsOf } from '../backupCopies.ts';
import { noStorage } from '../storedBackups.ts';
import { backupMessage } from './backupMessage.ts';
import type { ApiCall, ApiContext } from './context.ts';
import { ApiError } from './errors.ts';
import { errorDetail } from './grpcErrors.ts';
import { jobMessage } from './jobMessage.ts';
import { Pages } from './page.ts';
import { startRequestOf } from './startRequest.ts';

const backupsDefault = 100;

/** @throws AgentError STORAGE_NOT_CONFIGURED; ConfigError NO_STORAGE; ApiError REQUEST_INVALID */
export async function listBackups(
  { agent }: ApiContext,
  request: ListBackupsRequest,
): Promise<ListBackupsResponse> {
  const { storages: all, configPath } = agent.parts;
  const of = ['backups', request.machine, request.storage];
  const pages = new Pages<readonly BackupEntry[]>(request, { of, keyOf, defaultSize: backupsDefault });
  const storages = request.storage === '' ? [...all.values()] : agent.storagesOf(request.storage);
  if (storages.length === 0) throw noStorage(configPath);
  const machine = request.machine === '' ? undefined : request.machine;
  const { entries, unreachable } = await entriesIn(storages, machine);
  const groups = groupsOf(entries).toSorted((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
  const page = pages.of(groups);
  const backups = await Promise.all(page.items.map((group) => backupOf(agent, group)));
  const told = backups.map((backup) => backupMessage(backup, { withManifest: false }));
  const { messages, nextPageToken } = pages.fitting(page, told, Backup);
  return { backups: messages, nextPageToken, unreachable };
}

async function entriesIn(
  storages: readonly Storage[],
  machine: string | undefined,
): Promise<{ readonly entries: readonly BackupEntry[] } & Pick<ListBackupsResponse, 'unreachable'>> {
  const entries: BackupEntry[] = [];
  const unreachable: ListBackupsResponse['unreachable'] = [];
  for (const storage of storages) {
    try {
      entries.push(...(await storage.list({ machine })));
    } catch (error) {
      // One storage that does not answer hides no other.
      if (!(error instanceof StillpointError)) throw error;
      unreachable.push(errorDetail(errorRecord(error), storage.name));
    }
  }
  return { entries, unreachable };
}

/** Copies of one backup have one T1; what has no id stands alone. */
function keyOf([entry]: readonly BackupEntry[]): string {
  return `${entry?.pointInTime} ${entry?.id ?? `${entry?.storage}:${entry?.directory}`}`;
}

/** @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS; ApiError REQUEST_INVALID */
export async function getBackup(
  { agent }: ApiContext,
  { reference }: GetBackupRequest,
): Promise<GetBackupResponse> {
  if (reference === '') throw new ApiError('REQUEST_INVALID', 'reference is missing');
  const entry = await agent.backups.find(reference);
  const entries = [entry];
  for (const storage of agent.parts.storages.values()) {
    if (entry.id === null || storage.name === entry.storage) continue;
    const copy = await copyIn(storage, entry.id);
    if (copy !== null) entries.push(copy);
  }
  return { backup: backupMessage(await backupOf(agent, entries), { withManifest: true }) };
}

/** A storage that does not answer must not hide the copy that another one has. */
async function copyIn(storage: Storage, id: string): Promise<BackupEntry | null> {
  try {
    return await storage.findCommitted(id);
  } catch (error) {
    if (error instanceof StillpointError) return null;
    throw error;
  }
}

/** @throws ApiError; JobError JOURNAL_UNUSABLE. What concerns one machine is a part of the answer. */
export async function startBackup(
  { agent, started }: ApiContext,
  message: StartBackupRequest,
  { caller }: ApiCall,
): Promise<StartBackupResponse> {
  const outcomes = await started.start(startRequestOf(message), caller);
  const backups = outcomes.map(({ part: machine, jobId, error }): StartedBackup => {
    if (error !== null) return { machine, outcome: { $case: 'error', value: errorDetail(error, machine) } };
    const job = jobMessage(agent, agent.parts.journal.get(jobId ?? ''));
    return { machine, outcome: { $case: 'job', value: job } };
  });
  return { backups };
}
