import { chown, chmod, link, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { hashFile } from '../../common/copy.ts';
import { isErrno } from '../../common/errors.ts';
import { exists, fsyncDirectory, fsyncFile, makeDirectoryDurable } from '../../common/files.ts';
import { convertToRaw, sameContent } from '../../common/qemuImage.ts';
import { isSameFile } from '../snapshot/workFiles.ts';
import { workDirectoryMode } from '../snapshot/workspace.ts';
import { RestoreError } from './errors.ts';
import { readQcow2Header } from '../../storage/directory/qcow2Header.ts';
import type { CopiedOut, CopyOutOptions, StoredFile, StoredFiles } from '../../storage/storage.ts';
import type { RestoredVolume, RestorePlan } from './plan.ts';

/** Time for writing one volume anew. */
const convertDeadlineMs = 7 * 24 * 3600 * 1000;

/** A file that replaces another: its checked copy, its place, and the second name of what stands there. */
export interface Replacement {
  readonly staged: string;
  readonly place: string;
  readonly kept: string;
  readonly existed: boolean;
  /** Name that what stood there keeps when the restore has succeeded. */
  readonly safetyCopy: string | null;
  /** What stands at the place belongs to, where only the plan knows it. */
  readonly presentOwner: { readonly uid: number; readonly gid: number } | null;
}

/** Every file that a plan puts into its place. */
export function replacementsOf(plan: RestorePlan): readonly Replacement[] {
  const volumes = plan.volumes.map(({ staged, file, kept, existed, safetyCopy, presentOwner }) => ({
    staged,
    place: file,
    kept,
    existed,
    safetyCopy,
    presentOwner,
  }));
  const nvram = plan.nvram === null ? [] : [{ ...plan.nvram, place: plan.nvram.path, presentOwner: null }];
  const extras = plan.extras.map((extra) => ({ ...extra, place: extra.path, presentOwner: null }));
  return [...volumes, ...nvram, ...extras, ...plainFilesOf(plan)];
}

/** What a restore of files puts beside the images: memory state and definition, as they were stored. */
export function plainFilesOf(
  plan: RestorePlan,
): readonly (Replacement & { readonly artifact: RestorePlan['definition'] })[] {
  const image = plan.volumes[0]?.image;
  const work = plan.workDirectories[0];
  if (plan.kind !== 'files' || plan.scope === 'volumes' || image === undefined || work === undefined)
    return [];
  const file = (name: string, place: string, artifact: RestorePlan['definition']) => ({
    artifact,
    place,
    staged: join(work, `${name}.staged`),
    kept: join(work, `${name}.kept`),
    existed: false,
    safetyCopy: null,
    presentOwner: null,
  });
  const memory = plan.memory === null ? [] : [file('memory', plan.memory.staged, plan.memory.artifact)];
  return [...memory, file('definition', join(dirname(image), `${plan.machine.name}.xml`), plan.definition)];
}

/** How a stored file is copied. */
interface StageOptions {
  readonly signal: AbortSignal;
  /** `file` unless told. */
  readonly as?: CopyOutOptions['as'];
  readonly owner?: { readonly uid: number; readonly gid: number; readonly mode: number };
  readonly onProgress?: (bytesDone: number) => void;
}

/**
 * Copies a stored file beside its destination and proves both: what was read is what was stored, and what was
 * written is what was read.
 * @throws StorageError BACKUP_DAMAGED; RestoreError WRITTEN_DIFFERS, NOT_ENOUGH_DISK_SPACE, COPY_FAILED; or the reason
 *   of `signal`
 */
export async function stageFile(
  stored: Pick<StoredFiles, 'copyOut'>,
  artifact: StoredFile,
  staged: string,
  options: StageOptions,
): Promise<void> {
  try {
    await stageChecked(stored, artifact, staged, options);
  } catch (error) {
    throw copyError(error, artifact, staged);
  }
}

/** Only what is written to can be without room; which of the two places fails otherwise is in the message. */
function copyError(error: unknown, { path }: StoredFile, staged: string): unknown {
  if (!(error instanceof Error && 'syscall' in error)) return error;
  const isFull = isErrno(error, 'ENOSPC') || isErrno(error, 'EDQUOT');
  return new RestoreError(
    isFull ? 'NOT_ENOUGH_DISK_SPACE' : 'COPY_FAILED',
    `${path} cannot be copied to ${staged}: ${error.message}`,
    {
      cause: error,
      hint: isFull
        ? `df -h ${dirname(staged)}; make room there, or restore elsewhere with --to DIR`
        : `findmnt -T ${dirname(staged)}; journalctl -k; and stillpoint verify --data of the backup`,
    },
  );
}

async function stageChecked(
  stored: Pick<StoredFiles, 'copyOut'>,
  artifact: StoredFile,
  staged: string,
  options: StageOptions,
): Promise<void> {
  await makeDirectoryDurable(dirname(staged), workDirectoryMode);
  await rm(staged, { force: true });
  const { signal, onProgress, as = 'file' } = options;
  const copied = await stored.copyOut(artifact, staged, { as, signal, onProgress, readBack: true });
  if (!(await isWrittenRightly(staged, copied, signal))) {
    await rm(staged, { force: true });
    throw new RestoreError('WRITTEN_DIFFERS', `${staged} reads back differently from what was written`, {
      hint: `the file system or its device is at fault: dmesg; findmnt -T ${dirname(staged)}`,
    });
  }
  if (options.owner !== undefined) {
    await chown(staged, options.owner.uid, options.owner.gid);
    // Whatever a manifest says, a disk image is no program.
    await chmod(staged, options.owner.mode & 0o777);
  }
}

/** What was not compared while it was written is read once more. */
async function isWrittenRightly(
  staged: string,
  { sha256, digest, written }: CopiedOut,
  signal: AbortSignal,
): Promise<boolean> {
  if (written !== 'not compared') return written === 'same';
  return (await hashFile(staged, { signal, digest })).sha256 === sha256;
}

/**
 * A stored volume stands alone; one that names another file would show that file's content to the guest.
 * @throws RestoreError BACKUP_DAMAGED
 */
export async function requireStandalone(volume: RestoredVolume): Promise<void> {
  if (volume.format === 'raw') return;
  const header = await readQcow2Header(volume.staged);
  if (header !== null && !header.hasBackingFile && !header.hasDataFile && !header.isCorrupt) return;
  await rm(volume.staged, { force: true });
  throw new RestoreError('BACKUP_DAMAGED', `${volume.artifact.path} is not a standalone qcow2 image`, {
    hint: 'nothing was changed; look at it with qemu-img info, and do not trust where it comes from',
  });
}

/**
 * Writes the checked copy of a volume anew as the raw image that its machine opens, compares the two, and lets it
 * take the copy's place.
 * @throws QemuImageError; RestoreError WRITTEN_DIFFERS; or the reason of `signal`
 */
export async function makeRaw(volume: RestoredVolume, signal: AbortSignal): Promise<void> {
  const raw = `${volume.staged}.raw`;
  await rm(raw, { force: true });
  await convertToRaw(volume.staged, raw, { signal, deadlineMs: convertDeadlineMs });
  if (!(await sameContent(volume.staged, raw, { signal, deadlineMs: convertDeadlineMs }))) {
    await rm(raw, { force: true });
    throw new RestoreError('WRITTEN_DIFFERS', `${raw} reads back differently from what was written`, {
      hint: `the file system or its device is at fault: dmesg; findmnt -T ${dirname(raw)}`,
    });
  }
  await chown(raw, volume.owner.uid, volume.owner.gid);
  await chmod(raw, volume.owner.mode & 0o777);
  await fsyncFile(raw);
  await rename(raw, volume.staged);
  await fsyncDirectory(dirname(volume.staged));
}

/** By the path where it was staged: the inode and the last change of every file that a restore made. */
export type StagedMarks = Readonly<Record<string, string>>;

/**
 * What tells whether a file is ours, and whether it was written to since: a rename keeps it, and QEMU changes the
 * header of every image that it opens for writing.
 */
export async function markOf(path: string): Promise<string> {
  const { ino, mtimeNs } = await stat(path, { bigint: true });
  return `${ino}:${mtimeNs}`;
}

/** What stands at the place is the file that was staged, written to or not. */
async function isOurs({ staged, place }: Replacement, marks: StagedMarks): Promise<boolean> {
  const mark = marks[staged];
  if (mark === undefined || !(await exists(place))) return false;
  return (await markOf(place)).split(':')[0] === mark.split(':')[0];
}

/** True when a restored image that stands at its place was written to since it was staged: a machine ran on it. */
export async function hasRun(volumes: readonly RestoredVolume[], marks: StagedMarks): Promise<boolean> {
  for (const { staged, file } of volumes) {
    if ((await exists(staged)) || !(await exists(file))) continue;
    if ((await markOf(file)) !== marks[staged]) return true;
  }
  return false;
}

/** Puts a staged file into its place; what stood there keeps a second name. May be started again. */
export async function putInPlace(replacement: Replacement, overwrite: boolean): Promise<void> {
  const { staged, place, kept, existed } = replacement;
  if (!(await exists(staged))) return;
  if (existed && !(await exists(kept))) {
    await link(place, kept);
    await fsyncDirectory(dirname(kept));
  }
  if (overwrite && existed) {
    await rename(staged, place);
  } else {
    // A predecessor that was killed between the two lines below.
    if (!(await isSameFile(staged, place))) await linkNew(staged, place);
    await rm(staged);
  }
  await fsyncDirectory(dirname(place));
}

/** link(2) refuses what exists, rename(2) would overwrite it. */
async function linkNew(staged: string, place: string): Promise<void> {
  try {
    await link(staged, place);
  } catch (error) {
    if (!isErrno(error, 'EEXIST')) throw error;
    throw new RestoreError('PATH_TAKEN', `${place} exists; nothing is overwritten`, {
      hint: 'choose another directory with --to DIR, or another name',
      cause: error,
    });
  }
}

/** The restored file stands at its place, and `takeOut` would take it away. */
export async function isInPlace(replacement: Replacement, marks: StagedMarks): Promise<boolean> {
  const { staged, kept, existed } = replacement;
  if (await exists(staged)) return false;
  return existed ? exists(kept) : isOurs(replacement, marks);
}

/** Undoes `putInPlace`: what stood there gets its place back; a file of ours that is new goes, and no other. */
export async function takeOut(replacement: Replacement, marks: StagedMarks): Promise<void> {
  const { place, kept, existed, presentOwner } = replacement;
  if (existed) {
    if (!(await exists(kept))) return;
    if (presentOwner !== null) await chown(kept, presentOwner.uid, presentOwner.gid);
    await rename(kept, place);
  } else {
    if (!(await isOurs(replacement, marks))) return;
    await rm(place, { force: true });
  }
  await fsyncDirectory(dirname(place));
}

/**
 * Gives what a finished restore has replaced the names under which its owner finds it. May be started again.
 * @param definition where the replaced definition is kept
 */
export async function keepSafetyCopies(plan: RestorePlan, definition: string): Promise<void> {
  for (const { kept, safetyCopy, presentOwner } of replacementsOf(plan)) {
    if (safetyCopy === null || !(await exists(kept))) continue;
    if (presentOwner !== null) await chown(kept, presentOwner.uid, presentOwner.gid);
    await moveNew(kept, safetyCopy);
  }
  if (plan.definitionSafetyCopy !== null && (await exists(definition)))
    await moveNew(definition, plan.definitionSafetyCopy);
}

/** Moves a file to a name that is free, or is its own already, in the same file system. */
async function moveNew(from: string, to: string): Promise<void> {
  if (!(await isSameFile(from, to))) await linkNew(from, to);
  await fsyncDirectory(dirname(to));
  await rm(from);
}
