import type { Storage } from '../../storage/storage.ts';

/** How often what is done with bytes that were read counts as a sign of life. */
const aliveMs = 1000;

/** What a reader of a stored file is told, and tells. */
export interface Reading {
  readonly signal: AbortSignal;
  readonly onProgress: (bytesDone: number) => void;
}

/**
 * Reads a file of a backup within the patience that its storage is given. Once its last byte was read, the storage
 * has no part in what may still take long: bringing it to the disk, and reading that back.
 * @throws StorageError STORAGE_UNREACHABLE; whatever `read` throws
 */
export async function readStored(
  storage: Pick<Storage, 'reading'>,
  artifact: { readonly path: string; readonly sizeBytes: number },
  { signal, onProgress }: Reading,
  read: (reading: Reading) => Promise<void>,
): Promise<void> {
  let afterwards: NodeJS.Timeout | undefined;
  try {
    await storage.reading(`reading ${artifact.path}`, (watch) =>
      read({
        signal: AbortSignal.any([signal, watch.signal]),
        onProgress: (bytesDone) => {
          watch.alive();
          if (bytesDone >= artifact.sizeBytes) afterwards ??= setInterval(() => watch.alive(), aliveMs);
          onProgress(bytesDone);
        },
      }),
    );
  } finally {
    clearInterval(afterwards);
  }
}
