import type { Stats } from 'node:fs';
import { lstat, realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import { messageOf } from '../../common/errors.ts';
import { HookError } from './errors.ts';

const writableByOthers = 0o022;
const sticky = 0o1000;
const executable = 0o100;

/**
 * A program that nobody but root can have changed: it and every directory above it belong to root, and nobody else may
 * write to them. A path through a symbolic link is refused, because that could lead elsewhere a moment later.
 * @throws HookError HOOK_UNSAFE
 */
export async function requireSafeProgram(path: string): Promise<void> {
  const real = await realPathOf(path);
  if (real !== path) throw unsafe(path, 'it leads through a symbolic link', `name it directly: ${real}`);
  const program = await lstat(path);
  if (!program.isFile() || (program.mode & executable) === 0)
    throw unsafe(path, 'it is no program', `ls -l ${path}`);
  requireRoots(path, path, program);
  for (let above = path; above !== dirname(above); ) {
    above = dirname(above);
    requireRoots(path, above, await lstat(above));
  }
}

function requireRoots(path: string, part: string, stats: Stats): void {
  const { uid, mode } = stats;
  if (uid !== 0) throw unsafe(path, `${part} does not belong to root`, `chown root: ${part}`);
  // In a sticky directory nobody can replace what belongs to root.
  const isShared = stats.isDirectory() && (mode & sticky) !== 0;
  if ((mode & writableByOthers) !== 0 && !isShared)
    throw unsafe(path, `others than root may write to ${part}`, `chmod go-w ${part}`);
}

async function realPathOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    throw new HookError('HOOK_UNSAFE', `the hook ${path} cannot be looked at: ${messageOf(error)}`, {
      cause: error,
      hint: `ls -l ${path}; see hooks: of the policy`,
    });
  }
}

function unsafe(path: string, why: string, hint: string): HookError {
  return new HookError('HOOK_UNSAFE', `the hook ${path} is not run: ${why}`, { hint });
}
