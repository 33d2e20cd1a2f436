import type { CallOptions } from '../backends/backend.ts';
import { damaged, RepositoryError } from './errors.ts';
import { damagedName } from './names.ts';
import { createOnce, type RepositoryContext, sealedBytesMax } from './objects.ts';

/** What is damaged so often is damaged where it stands. */
const readsMax = 3;
/** Nobody finds one object damaged in more ways. */
const copiesMax = 100;

/**
 * Why an object is damaged, or `null`. Read several times: what is damaged on its way only is no damage. What cannot be judged,
 * because it is newer than this program, is none either.
 *
 * @param read rejects with REPOSITORY_DAMAGED if it is
 */
export async function damageOf(read: () => Promise<unknown>): Promise<string | null> {
  let reason: string | null = null;
  for (let attempt = 0; attempt < readsMax; attempt++) {
    try {
      await read();
      return null;
    } catch (error) {
      if (!(error instanceof RepositoryError)) throw error;
      if (error.code !== 'REPOSITORY_DAMAGED') return null;
      reason = error.message;
    }
  }
  return reason;
}

/**
 * Keeps the bytes of a damaged object under `damaged/` (docs/FORMAT.md, "Repair"), so that it can be taken from its
 * place. Repeating it finds itself.
 */
export async function keepAside(
  context: RepositoryContext,
  name: string,
  options: CallOptions,
): Promise<void> {
  // Whatever follows was never ours, and need not fit into memory.
  const range = { offsetBytes: 0, lengthBytes: sealedBytesMax };
  const bytes = await context.backend.read(name, { ...options, range });
  // Somebody else was faster.
  if (bytes === null) return;
  for (let number = 1; number <= copiesMax; number++)
    if ((await createOnce(context.backend, damagedName(name, number), [bytes], options)) !== 'taken') return;
  throw damaged(name, `there are more than ${copiesMax} copies of it under damaged/`);
}

/**
 * Moves a damaged object aside, if it is still damaged: since it was looked at hours may have gone by. Returns whether
 * it was.
 */
export async function setAside(
  context: RepositoryContext,
  name: string,
  {
    judge,
    remove,
    ...options
  }: CallOptions & { readonly judge: () => Promise<string | null>; readonly remove: () => Promise<void> },
): Promise<boolean> {
  if ((await judge()) === null) return false;
  await keepAside(context, name, options);
  await remove();
  return true;
}
