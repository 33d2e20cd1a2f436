import { realpath } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import type { DelegatedRestore } from '../../config/delegatedRestore.ts';
import type { Caller } from './caller.ts';
import { ApiError } from './errors.ts';

/** As much of a plan as says where it writes. */
export interface PlacedFiles {
  readonly kind: 'in-place' | 'new-machine' | 'files';
  readonly machine: { readonly name: string };
  /** `file` is `image` with symbolic links resolved. */
  readonly volumes: readonly { readonly image: string; readonly file: string; readonly existed: boolean }[];
  readonly nvram: PlacedFile | null;
  readonly extras: readonly PlacedFile[];
}

interface PlacedFile {
  readonly path: string;
  readonly existed: boolean;
}

/** Everything that a restore puts in place. */
export function pathsOf({ volumes, nvram, extras }: PlacedFiles): readonly string[] {
  return [
    ...volumes.map(({ image }) => image),
    ...(nvram === null ? [] : [nvram.path]),
    ...extras.map(({ path }) => path),
  ];
}

/**
 * Looks whether somebody may have files restored into a directory at all, before anything is looked at there: what
 * stands where is told to nobody who may not write there.
 * @throws ApiError RESTORE_DENIED
 */
export async function requireDirectoryRight(
  directory: string,
  caller: Caller,
  { directories }: DelegatedRestore,
): Promise<void> {
  if (caller.isPrivileged === true) return;
  const allowed = await Promise.all(directories.map(realPathOf));
  // What is put there stands below it.
  const real = await realPathOf(join(directory, 'a'));
  if (!allowed.some((one) => isInside(real, one))) throw deniedPlace(caller, directory, directory);
}

/**
 * Looks whether somebody may have a restore done. It is root who writes the files and defines the machine, so others get
 * no further than the configuration says, by where files really are.
 * @throws ApiError RESTORE_DENIED
 */
export async function requireRestoreRight(
  plan: PlacedFiles,
  caller: Caller,
  { directories, inPlace }: DelegatedRestore,
): Promise<void> {
  if (caller.isPrivileged === true) return;
  const replaced = plan.kind === 'in-place' ? plan.machine.name : replacedFile(plan);
  if (!inPlace && replaced !== undefined)
    throw denied(caller, `may not replace ${replaced}`, 'agent.delegatedRestore: { inPlace: true }');
  const allowed = await Promise.all(directories.map(realPathOf));
  const links = plan.volumes.map(({ file }) => file);
  for (const path of [...pathsOf(plan), ...links]) {
    const real = await realPathOf(path);
    if (!allowed.some((directory) => isInside(real, directory)))
      throw deniedPlace(caller, path, dirname(path));
  }
}

function deniedPlace(caller: Caller, path: string, directory: string): ApiError {
  return denied(
    caller,
    `may not write to ${path}`,
    `agent.delegatedRestore: { directories: [${directory}] }`,
  );
}

function denied(caller: Caller, what: string, lines: string): ApiError {
  return new ApiError('RESTORE_DENIED', `${caller.name} ${what} on this host`, {
    hint: `in the configuration of the host, ${lines}; or stillpoint restore as root there`,
  });
}

function replacedFile({ volumes, nvram, extras }: PlacedFiles): string | undefined {
  const files = [
    ...volumes.map(({ image: path, existed }) => ({ path, existed })),
    ...(nvram === null ? [] : [nvram]),
    ...extras,
  ];
  return files.find(({ existed }) => existed)?.path;
}

function isInside(path: string, directory: string): boolean {
  return path.startsWith(directory.endsWith(sep) ? directory : `${directory}${sep}`);
}

/**
 * With symbolic links resolved as far as the path exists. Below what is no directory nothing can be written, and so by
 * links that lead round in a circle.
 */
async function realPathOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    const cannotBe = ['ENOENT', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG'].some((code) => isErrno(error, code));
    if (!cannotBe || path === dirname(path)) throw error;
    return join(await realPathOf(dirname(path)), basename(path));
  }
}
