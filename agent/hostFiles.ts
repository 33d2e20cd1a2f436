import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { exists, makeDirectoryDurable, writeFileDurable } from '../common/files.ts';
import { formatHostManifest, type HostManifest, hostManifestFileName } from '../storage/hostManifest.ts';
import { StorageError } from '../storage/errors.ts';
import type { Storage } from '../storage/storage.ts';

/**
 * Writes the files of a host's backup into a directory, and last its manifest, which says what each of them is and
 * what had autostart. Everything is compared before the first is written, and nothing is overwritten.
 * @throws StorageError MANIFEST_INVALID for a file that is not what was
 * stored, BACKUP_EXISTS for one that is there already
 */
export async function writeHostFiles(
  storage: Pick<Storage, 'hostFile'>,
  backup: { readonly manifest: HostManifest; readonly directory: string },
  target: string,
): Promise<void> {
  const files = new Map<string, Buffer>();
  for (const { file, sha256 } of backup.manifest.items) {
    const content = await storage.hostFile(backup, file);
    if (createHash('sha256').update(content).digest('hex') !== sha256)
      throw new StorageError('MANIFEST_INVALID', `${file} is not what was stored: its digest differs`, {
        hint: 'nothing was written; take another one: stillpoint list --host',
      });
    files.set(file, content);
  }
  files.set(hostManifestFileName, Buffer.from(formatHostManifest(backup.manifest)));
  for (const file of files.keys())
    if (await exists(join(target, file)))
      throw new StorageError('BACKUP_EXISTS', `${join(target, file)} exists; nothing is overwritten`, {
        hint: 'choose an empty directory with --to',
      });
  await makeDirectoryDurable(target, 0o700);
  for (const [file, content] of files)
    await writeFileDurable(join(target, file), content.toString('utf8'), { mode: 0o600 });
}
