import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { writeFileDurable } from '../../common/files.ts';
import { isUuid, newId } from '../../common/ids.ts';
import { ReportError } from './errors.ts';

/**
 * The UUID by which the controller knows this host. It is made once, and stays for as long as the state directory does.
 * @throws ReportError OUTBOX_UNUSABLE when it can be neither read nor written
 */
export async function hostIdIn(stateDir: string): Promise<string> {
  const path = join(stateDir, 'host-id');
  try {
    const id = (await readFile(path, 'utf8')).trim();
    if (isUuid(id)) return id;
    // Another one would make another host of this one, which is somebody's to decide.
    throw new ReportError('OUTBOX_UNUSABLE', `${path} holds no UUID`, {
      hint: `remove ${path}; the controller then takes this host for a new one`,
    });
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
  }
  const id = newId();
  await writeFileDurable(path, `${id}\n`, { mode: 0o644 });
  return id;
}
