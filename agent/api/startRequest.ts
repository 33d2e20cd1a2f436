import { createHash } from 'node:crypto';
import type { StartBackupRequest } from '../../proto/generated/stillpoint/v1/agent.ts';
import type { BackupRequest } from '../backupRequests.ts';
import { modeOf } from './enums.ts';
import { ApiError } from './errors.ts';

const machinesMax = 1000;
const namesMax = 64;
const labelsMax = 64;
const textLengthMax = 256;

/** A request for backups that makes sense; whether its machines and storages exist is not known yet. */
export interface StartRequest {
  readonly key: string;
  readonly machines: readonly string[];
  readonly wishes: Pick<BackupRequest, 'mode' | 'storages' | 'labels' | 'reread'>;
}

/** Takes a message for a request. @throws ApiError REQUEST_INVALID */
export function startRequestOf(message: StartBackupRequest): StartRequest {
  const key = requireKey(message.idempotencyKey);
  const { machines, storages, labels, mode, reread } = message;
  requireNames('machines', machines, { min: 1, max: machinesMax });
  requireNames('storages', storages, { min: 0, max: namesMax });
  requireNames('keys of labels', Object.keys(labels), { min: 0, max: labelsMax });
  for (const value of Object.values(labels)) requireText('a label', value, 0);
  return {
    key,
    machines,
    wishes: { mode: modeOf(mode), storages: storages.length === 0 ? undefined : storages, labels, reread },
  };
}

/** An idempotency key. @throws ApiError REQUEST_INVALID */
export function requireKey(key: string): string {
  if (/^[\x21-\x7e]{1,128}$/.test(key)) return key;
  throw new ApiError('REQUEST_INVALID', 'idempotency_key must be 1 to 128 printable ASCII characters', {
    hint: 'give each request a new UUID, and a request that is repeated the same one',
  });
}

/** The same for requests that ask for the same. */
export function fingerprintOf(kind: 'backup' | 'retry' | 'restore', parts: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify([kind, parts]))
    .digest('hex');
}

/** What two requests must have in common to be the same one. */
export function partsOf({ machines, wishes }: StartRequest): unknown {
  const labels = Object.entries(wishes.labels ?? {}).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return [machines, wishes.mode ?? null, wishes.storages ?? null, labels, wishes.reread ?? false];
}

function requireNames(
  what: string,
  names: readonly string[],
  { min, max }: { readonly min: number; readonly max: number },
): void {
  if (names.length < min || names.length > max)
    throw new ApiError(
      'REQUEST_INVALID',
      `${what}: ${min} to ${max} are possible, there are ${names.length}`,
    );
  for (const name of names) requireText(what, name, 1);
  if (new Set(names).size < names.length)
    throw new ApiError('REQUEST_INVALID', `${what}: one is named twice`);
}

function requireText(what: string, text: string, min: number): void {
  if (text.length >= min && text.length <= textLengthMax && !/\p{Cc}/u.test(text)) return;
  throw new ApiError(
    'REQUEST_INVALID',
    `${what}: ${min} to ${textLengthMax} characters without control characters are possible`,
  );
}
