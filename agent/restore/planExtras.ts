import { basename, dirname, join } from 'node:path';
import { exists } from '../../common/files.ts';
import { isFileExtra, type Manifest, type ManifestFileExtra } from '../../storage/manifest.ts';
import type { BackupEntry, StoredFiles } from '../../storage/storage.ts';
import { retainDirectoryName } from '../snapshot/workspace.ts';
import type { Conflict, RestoredExtra, RestorePlan } from './plan.ts';
import { type Naming, safetyCopyOf } from './planFiles.ts';

/** What a kernel or firmware is for everybody; a TPM's state is libvirt's alone. */
const publicMode = 0o644;
const secretMode = 0o600;

/** What becomes of the extras of a backup, and what the operator should know of it. */
export interface PlannedExtras {
  readonly extras: RestorePlan['extras'];
  readonly conflicts: readonly Conflict[];
}

/**
 * Plans what is put in place beside volumes, memory, NVRAM and definition: the TPM's state where libvirt looks for it
 * under the machine's UUID, and what the machine boots with where there is nothing: what is there may be another
 * machine's too. Restored as files, all of it goes into the directory.
 */
export async function planExtras(
  stored: Pick<StoredFiles, 'isSameAs'>,
  entry: BackupEntry,
  manifest: Manifest,
  naming: Naming,
  uuid: string,
): Promise<PlannedExtras> {
  const extras: RestoredExtra[] = [];
  const conflicts: Conflict[] = [];
  if (naming.scope === 'volumes') return { extras, conflicts };
  const { kind, to, jobId } = naming;
  for (const extra of manifest.extras) {
    if (extra.kind === 'nvram') continue;
    const artifact = {
      path: join(entry.directory, extra.file),
      sizeBytes: extra.sizeBytes,
      sha256: extra.sha256,
    };
    if (kind === 'files') {
      const directory = to ?? '';
      extras.push(placed(artifact, join(directory, extra.file), join(directory, retainDirectoryName, jobId)));
    } else if (isFileExtra(extra) && extra.kind === 'tpm') {
      extras.push(await planTpm(extra, artifact, naming, uuid));
    } else if (isFileExtra(extra)) {
      if (!(await exists(extra.source))) {
        const work = join(dirname(extra.source), retainDirectoryName, jobId);
        extras.push({ ...placed(artifact, extra.source, work), mode: publicMode });
      } else if (!(await stored.isSameAs(artifact, extra.source))) {
        conflicts.push({
          kind: 'path',
          message: `the ${extra.kind} ${extra.source} is another one than at that time, and stays; that of the backup is ${artifact.path}`,
        });
      }
    }
  }
  return { extras, conflicts };
}

function placed(artifact: RestoredExtra['artifact'], path: string, work: string): RestoredExtra {
  const name = basename(artifact.path);
  return {
    artifact,
    path,
    staged: join(work, `${name}.staged`),
    kept: join(work, `${name}.kept`),
    existed: false,
    safetyCopy: null,
    mode: secretMode,
  };
}

/** `<directory>/<UUID>/<version>/<file>`: libvirt gives it to swtpm's user when the machine starts. */
async function planTpm(
  { source }: ManifestFileExtra,
  artifact: RestoredExtra['artifact'],
  { jobId, safetyCopy }: Naming,
  uuid: string,
): Promise<RestoredExtra> {
  const version = dirname(source);
  const root = dirname(dirname(version));
  const path = join(root, uuid, basename(version), basename(source));
  const existed = await exists(path);
  return {
    ...placed(artifact, path, join(root, retainDirectoryName, jobId)),
    existed,
    // Not in the directory that swtpm works in.
    safetyCopy: existed && safetyCopy ? safetyCopyOf(join(root, uuid, basename(source))) : null,
  };
}
