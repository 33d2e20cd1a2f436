import { join } from 'node:path';
import { exists } from '../../common/files.ts';
import { SnapshotError } from './errors.ts';
import type { SeenVolume } from './planReadVolume.ts';
import type { ReadVolume } from './readPlan.ts';
import { requireOwnDirectory } from './retainDirectory.ts';
import { retainDirectoryName, workDirectoryFor } from './workspace.ts';

/** Where libvirt itself keeps images: QEMU's user gets through. */
const libvirtImages = '/var/lib/libvirt/images';

/**
 * Decides where what the guest overwrites goes: beside the image, and for a device or a network volume beside an
 * image of the same machine, or else among libvirt's own images.
 * @throws SnapshotError RETAIN_DIRECTORY_ELSEWHERE when there is no such place
 */
export async function placeScratch(
  machineName: string,
  seen: readonly SeenVolume[],
  request: {
    readonly mode: 'disk' | 'offline';
    readonly jobId: string;
    readonly retainDirectory: string | null;
  },
): Promise<{ readonly volumes: ReadVolume[]; readonly workDirectories: string[] }> {
  const { mode, jobId, retainDirectory } = request;
  const volumes: ReadVolume[] = [];
  const workDirectories = new Set<string>();
  for (const volume of seen) {
    const workDirectory =
      volume.kind === 'file'
        ? workDirectoryFor(volume.file, retainDirectory, jobId)
        : await placeWithoutImage(machineName, seen, request);
    workDirectories.add(workDirectory);
    const scratch = mode === 'disk' ? join(workDirectory, `${volume.target}.scratch`) : null;
    volumes.push({ ...volume, scratch });
  }
  return { volumes, workDirectories: [...workDirectories] };
}

async function placeWithoutImage(
  machineName: string,
  seen: readonly SeenVolume[],
  { jobId, retainDirectory }: { readonly jobId: string; readonly retainDirectory: string | null },
): Promise<string> {
  if (retainDirectory !== null) {
    await requireOwnDirectory(retainDirectory);
    return join(retainDirectory, jobId);
  }
  const image = seen.find(({ kind }) => kind === 'file');
  if (image !== undefined) return workDirectoryFor(image.file, null, jobId);
  if (await exists(libvirtImages)) {
    const directory = join(libvirtImages, retainDirectoryName);
    await requireOwnDirectory(directory);
    return join(directory, jobId);
  }
  throw new SnapshotError(
    'RETAIN_DIRECTORY_ELSEWHERE',
    `${machineName} has no image file, so there is no place beside one for what it overwrites while it is read`,
    {
      hint: `in its policy: retainDirectory: /a/directory with room for that, through which QEMU's user gets; or mkdir ${libvirtImages}`,
    },
  );
}
