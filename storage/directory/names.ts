import { createHash } from 'node:crypto';
import { parsePointInTime } from '../../common/time.ts';
import { StorageError } from '../errors.ts';
import { artifactFileName } from '../manifest.ts';

/** So that `<machine>-<target>.qcow2.<T1>` always stays below the 255 bytes of a file name. */
const maxEncodedLength = 160;
const maxLabelLength = 48;

/** Beside the manifest of a backup that may not be removed. */
export const protectionFileName = 'protected.json';
/** Beside the manifest of a backup of which every byte was once read and compared. */
export const dataVerificationFileName = 'data-verified.json';

const partialPrefix = '.partial-';
const deletingPrefix = '.deleting-';
const jobIdForm = /^[A-Za-z0-9-]{1,64}$/;

/**
 * The name of a machine's directory: percent-encoded (UTF-8) outside `[A-Za-z0-9._-]`, and for `.` and `..`.
 * A name that gets too long is cut; if two machines meet there, the rule for foreign UUIDs parts them.
 */
export function encodeMachineName(name: string): string {
  if (name === '') throw new StorageError('NAME_INVALID', 'a machine without a name cannot be stored');
  if (name === '.' || name === '..') return name.replaceAll('.', '%2E');
  let encoded = '';
  for (const byte of Buffer.from(name, 'utf8')) {
    const character = String.fromCharCode(byte);
    const piece = /[A-Za-z0-9._-]/.test(character)
      ? character
      : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
    if (encoded.length + piece.length > maxEncodedLength) break;
    encoded += piece;
  }
  return encoded;
}

/** The machine that a directory is named after, without its UUID; `null` if no machine's directory has such a name. */
export function decodeMachineName(directory: string): string | null {
  const encoded = directory.replace(/~[0-9a-f-]{36}$/, '');
  if (!/^(?:[A-Za-z0-9._-]|%[0-9A-F]{2})+$/.test(encoded)) return null;
  const bytes = encoded.replaceAll(/%([0-9A-F]{2})/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  );
  return Buffer.from(bytes, 'latin1').toString('utf8');
}

/** The directory of a machine whose plain one belongs to another UUID. */
export function machineDirectoryWithUuid(name: string, uuid: string): string {
  return `${encodeMachineName(name)}~${uuid}`;
}

/** Where the files of a job gather. Throws NAME_INVALID for what is not a job id. */
export function partialDirectoryName(jobId: string): string {
  if (!jobIdForm.test(jobId))
    throw new StorageError('NAME_INVALID', `not a job id: ${JSON.stringify(jobId)}`);
  return `${partialPrefix}${jobId}`;
}

export function jobIdOfPartial(directory: string): string | null {
  const jobId = directory.startsWith(partialPrefix) ? directory.slice(partialPrefix.length) : '';
  return jobIdForm.test(jobId) ? jobId : null;
}

/** What a backup is called while it is being deleted. */
export function deletingDirectoryName(pointInTime: string): string {
  return `${deletingPrefix}${pointInTime}`;
}

/** The backup's directory that such a name was made of. */
export function pointInTimeOfDeleting(directory: string): string {
  return directory.slice(deletingPrefix.length);
}

export function isDeletingDirectory(directory: string): boolean {
  return directory.startsWith(deletingPrefix) && parsePointInTime(pointInTimeOfDeleting(directory)) !== null;
}

/** Throws NAME_INVALID unless it is a plain file name that a manifest may carry. */
export function assertArtifactName(fileName: string): void {
  if (!artifactFileName.safeParse(fileName).success || fileName === protectionFileName) {
    throw new StorageError(
      'NAME_INVALID',
      `not a name for a file of a backup: ${JSON.stringify(fileName.slice(0, 300))}`,
    );
  }
}

/** Names of the files of a backup. `pointInTime` in the form of `formatPointInTime`. */
export function artifactNames(
  machine: string,
  pointInTime: string,
): {
  readonly volume: (target: string, format: 'qcow2' | 'raw') => string;
  readonly memory: string;
  readonly definition: string;
  readonly nvram: string;
  /** @param label tells several extras of one kind apart: the name of a network, of a file, … */
  readonly extra: (kind: string, label: string) => string;
} {
  const prefix = encodeMachineName(machine);
  return {
    volume: (target, format) => `${prefix}-${target}.${format}.${pointInTime}`,
    memory: `${prefix}.state.${pointInTime}`,
    definition: `${prefix}.xml.${pointInTime}`,
    nvram: `${prefix}.nvram.${pointInTime}`,
    extra: (kind, label) => `${prefix}.${kind}-${shortLabel(label)}.${pointInTime}`,
  };
}

/** A name as part of a file's name; one that would be long is known by its digest. */
function shortLabel(label: string): string {
  const encoded = encodeMachineName(label);
  if (encoded.length <= maxLabelLength) return encoded;
  return createHash('sha256').update(label).digest('hex').slice(0, maxLabelLength);
}
