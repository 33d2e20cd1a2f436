import { isAbsolute, normalize } from 'node:path';
import type { RestoreSpec } from '../../proto/generated/stillpoint/v1/agent.ts';
import type { Agent } from '../agent.ts';
import { restoreStartOf } from './enums.ts';
import { ApiError } from './errors.ts';

const textLengthMax = 256;
const pathLengthMax = 4096;
const listedMax = 256;

type RestoreRequest = Parameters<Agent['planRestore']>[0];

/** What a restore is going to do. */
export type RestorePlan = Awaited<ReturnType<Agent['planRestore']>>;

/** A request for a restore that makes sense; whether its backup exists is not known yet. */
export interface RestoreWish {
  /** As `stillpoint restore` takes it. */
  readonly backup: string;
  readonly storage: string | undefined;
  readonly request: Omit<RestoreRequest, 'backup' | 'storage'>;
}

/** Takes a message for a request. @throws ApiError REQUEST_INVALID */
export function restoreWishOf(spec: RestoreSpec | undefined): RestoreWish {
  if (spec === undefined) throw invalid('restore is missing');
  const { backup, storage, volumes, networks, instant, start } = spec;
  requireText('backup', backup, 1);
  requireText('storage', storage, 0);
  const connections = Object.entries(networks).toSorted(([a], [b]) => (a < b ? -1 : 1));
  if (volumes.length > listedMax || connections.length > listedMax)
    throw invalid(`volumes, networks: ${listedMax} at the most`);
  for (const text of [...volumes, ...connections.flat()]) requireText('volumes, networks', text, 1);
  return {
    backup,
    storage: storage === '' ? undefined : storage,
    request: {
      ...targetOf(spec),
      start: restoreStartOf(start),
      volumes: volumes.length === 0 ? undefined : volumes,
      networks: Object.fromEntries(connections),
      instant,
    },
  };
}

function targetOf({ target }: RestoreSpec): Pick<RestoreRequest, 'as' | 'inPlace' | 'to'> {
  if (target?.$case === 'inPlace') return { inPlace: true };
  if (target?.$case === 'files') return { to: directoryOf(target.value.directory) };
  if (target?.$case !== 'newMachine')
    throw new ApiError('REQUEST_INVALID', 'restore.target is missing', {
      hint: 'in_place, new_machine or files: nothing is replaced unless that is said',
    });
  const { name, directory } = target.value;
  requireText('new_machine.name', name, 1);
  return { as: name, to: directory === '' ? undefined : directoryOf(directory) };
}

function directoryOf(path: string): string {
  if (path.length > pathLengthMax || !isAbsolute(path) || /\p{Cc}/u.test(path))
    throw invalid('directory must be an absolute path without control characters');
  return normalize(path);
}

function requireText(what: string, text: string, min: number): void {
  if (text.length < min || text.length > textLengthMax || /\p{Cc}/u.test(text))
    throw invalid(`${what}: ${min} to ${textLengthMax} characters without control characters are possible`);
}

function invalid(message: string): ApiError {
  return new ApiError('REQUEST_INVALID', message);
}
