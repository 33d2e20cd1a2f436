import { rm } from 'node:fs/promises';
import type { Storage, StoredFile } from '../../storage/storage.ts';
import { type Reading, readStored } from './readStored.ts';
import { rewriteSaveImage } from './saveImage.ts';

/**
 * Copies a memory state whose definition is another one then. What is not kept as a file is copied out first.
 * @throws RestoreError BACKUP_DAMAGED, STATE_FORMAT_UNSUPPORTED; StorageError; or the reason of the signal
 */
export async function stageAdapted(
  stored: Pick<Storage, 'kind' | 'reading' | 'copyOut'>,
  { artifact, staged }: { readonly artifact: StoredFile; readonly staged: string },
  options: Reading & { readonly definition: (original: string) => string },
): Promise<void> {
  const { definition } = options;
  const rewrite = (from: string, sha256: string, reading: Reading): Promise<void> =>
    rewriteSaveImage({ ...reading, from, to: staged, sha256, definition });
  if (stored.kind === 'directory')
    return readStored(stored, artifact, options, (reading) =>
      rewrite(artifact.path, artifact.sha256, reading),
    );
  const whole = `${staged}.stored`;
  await rm(whole, { force: true });
  try {
    const { sha256 } = await stored.copyOut(artifact, whole, { as: 'file', ...options });
    await rewrite(whole, sha256, { signal: options.signal, onProgress: () => undefined });
  } finally {
    await rm(whole, { force: true });
  }
}
