import { createHash } from 'node:crypto';
import { readFile, rm, stat } from 'node:fs/promises';
import { copyFileDurable, hashFile } from '../../common/copy.ts';
import { throttleOf } from '../../common/throttle.ts';
import { StorageError } from '../errors.ts';
import type { CopiedOut, CopyOutOptions, StoredFile, StoredFiles } from '../storage.ts';

/** Far more than libvirt writes for any machine. */
const textBytesMax = 4 * 1024 * 1024;

/** Artifacts that are files. */
export const filesByPath: StoredFiles = {
  async copyOut(artifact: StoredFile, to: string, options: CopyOutOptions): Promise<CopiedOut> {
    const { as, signal, onProgress, hold, throttle, readBack } = options;
    const digest = as === 'file' ? 'whole' : 'chunks';
    const copied = await copyFileDurable({
      from: artifact.path,
      to,
      mode: 0o600,
      signal,
      throttle: throttleOf(hold, throttle),
      onProgress,
      digest,
      readBack,
    });
    const { sha256, method } = copied;
    if (sha256 === artifact.sha256)
      return { sha256, digest, written: method === 'reflink' ? 'same' : (copied.readBack ?? 'not compared') };
    await rm(to, { force: true });
    throw differs(artifact.path);
  },

  open(): Promise<null> {
    return Promise.resolve(null);
  },

  /** It is read again, and compared again, whenever it is used: hours may lie between a plan and its steps. */
  async readText({ path, sha256 }: Pick<StoredFile, 'path' | 'sha256'>): Promise<string> {
    if ((await stat(path)).size <= textBytesMax) {
      const data = await readFile(path);
      if (createHash('sha256').update(data).digest('hex') === sha256) return data.toString('utf8');
    }
    throw differs(path);
  },

  async isSameAs({ sha256 }: Pick<StoredFile, 'sha256'>, hostFile: string): Promise<boolean> {
    return (await hashFile(hostFile)).sha256 === sha256;
  },
};

function differs(path: string): StorageError {
  return new StorageError('BACKUP_DAMAGED', `${path} is not what was stored: its digest differs`, {
    hint: 'nothing was changed; stillpoint verify BACKUP --data tells what else is damaged; another copy, or an older backup, may be whole',
  });
}
