import { readdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { exists } from '../../common/files.ts';
import { QemuImageError, readImageInfo } from '../../common/qemuImage.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { SavePlan } from '../snapshot/plan.ts';
import { currentStateFile, removeStateFile } from '../snapshot/stateFile.ts';
import { removeWorkDirectories } from '../snapshot/workFiles.ts';

/** No honest chain is longer; a header can name its own file. */
const chainMax = 64;

/**
 * True when a volume of an active machine stands on exactly what the headers of its images name, from the image that it
 * runs on down to the last one, all of them there: then it is complete as it is, and its next start finds the same.
 */
export async function standsOnItsHeaders(live: DomainXml, target: string): Promise<boolean> {
  const volume = live.volumes.find((candidate) => candidate.target === target);
  if (volume?.path === undefined || volume.backingChain === undefined) return false;
  const used = [volume.path, ...volume.backingChain.map(({ path }) => path)];
  const named = await chainOf(volume.path, volume.format, 'ends');
  return named.length === used.length && named.every((path, index) => path === used[index]);
}

/**
 * Removes what a job has left beside the images, except what something stands on: the images of its machine, live and
 * at its next start, those that the machine had before, and everything below them.
 * @returns the files of the job that stay
 */
export async function removeUnusedWork(hypervisor: Hypervisor, plan: SavePlan): Promise<readonly string[]> {
  const used = new Set<string>();
  const { uuid } = plan.machine;
  const tops = plan.volumes.map(({ image }) => ({ path: image, format: 'qcow2' as string | undefined }));
  const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
  const kinds =
    machine === undefined ? [] : (['live', ...(machine.persistent ? ['persistent' as const] : [])] as const);
  for (const kind of kinds)
    for (const { path, format, backingChain = [] } of DomainXml.parse(await hypervisor.definition(uuid, kind))
      .volumes) {
      if (path !== undefined) tops.push({ path, format });
      for (const below of backingChain)
        if (below.path !== undefined) tops.push({ ...below, path: below.path });
    }
  for (const { path, format } of tops)
    for (const file of await chainOf(path, format, 'throws')) used.add(file);

  await removeStateFile(await currentStateFile(plan));
  await removeStateFile(plan.stateFile);
  const kept: string[] = [];
  for (const directory of plan.workDirectories) {
    if (!(await exists(directory))) continue;
    const files = (await readdir(directory)).map((name) => join(directory, name));
    const staying = files.filter((file) => used.has(file));
    kept.push(...staying);
    if (staying.length === 0) await removeWorkDirectories({ workDirectories: [directory] });
    else for (const file of files) if (!used.has(file)) await rm(file, { force: true });
  }
  return kept;
}

/**
 * An image and what the headers say is below it, as far as it is there.
 * @param unreadable what a header means that cannot be read: before something is removed, nobody may guess
 * @throws QemuImageError
 */
async function chainOf(
  top: string,
  topFormat: string | undefined,
  unreadable: 'ends' | 'throws',
): Promise<readonly string[]> {
  const chain: string[] = [];
  let next: { readonly path: string; readonly format: string | undefined } | null = {
    path: top,
    format: topFormat,
  };
  while (next !== null && chain.length < chainMax && (await exists(next.path))) {
    chain.push(next.path);
    next = next.format === 'qcow2' ? await backingOf(next.path, unreadable) : null;
  }
  return chain;
}

async function backingOf(
  path: string,
  unreadable: 'ends' | 'throws',
): Promise<{ readonly path: string; readonly format: string | undefined } | null> {
  try {
    const { backing } = await readImageInfo(path, 'qcow2', { inUse: true });
    return backing === null
      ? null
      : { format: backing.format, path: join('/', resolveBacking(path, backing.path)) };
  } catch (error) {
    if (error instanceof QemuImageError && unreadable === 'ends') return null;
    throw error;
  }
}

/** A relative name is relative to the image that says it. */
function resolveBacking(image: string, backing: string): string {
  return backing.startsWith('/') ? backing : join(dirname(image), backing);
}
