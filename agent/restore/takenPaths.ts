import { stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isErrno } from '../../common/errors.ts';
import { nearestExisting } from '../../common/files.ts';
import { QemuImageError, readImageInfo } from '../../common/qemuImage.ts';
import { type DomainVolume, DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor, MachineSummary } from '../hypervisor/hypervisor.ts';
import { unlessGone } from '../hypervisor/unlessGone.ts';
import { foreignGuests } from '../snapshot/imageUsers.ts';
import { RestoreError } from './errors.ts';
import type { RestoredVolume, RestorePlan } from './plan.ts';

/** No honest chain is longer; a header can name its own file. */
const chainMax = 64;

/**
 * A restore writes only where nothing is, or over images of the machine itself: not over another machine's disk,
 * nor over what one stands on, by whatever name it reaches it.
 * @throws RestoreError PATH_TAKEN
 */
export async function refuseTakenPaths(
  hypervisor: Hypervisor,
  machines: readonly MachineSummary[],
  volumes: readonly RestoredVolume[],
  kind: RestorePlan['kind'],
  uuid: string,
): Promise<void> {
  const images = new Set<string>();
  for (const volume of volumes) {
    if (kind !== 'in-place' && volume.existed) {
      throw new RestoreError('PATH_TAKEN', `${volume.image} exists; nothing is overwritten`, {
        hint: 'choose another directory with --to DIR, or another name',
      });
    }
    await refuseFileAsDirectory(volume.image);
    images.add(volume.image);
    const file = await identityOf(volume.file);
    if (file !== undefined) images.add(file);
  }
  for (const machine of machines) {
    if (machine.uuid === uuid) continue;
    for (const path of await imagesOf(hypervisor, machine)) {
      const file = await identityOf(path);
      if (!images.has(path) && (file === undefined || !images.has(file))) continue;
      throw new RestoreError('PATH_TAKEN', `${path} belongs to the machine ${machine.name}`, {
        hint: 'restore with --as NAME or --to DIR',
      });
    }
  }
}

/**
 * What is to be replaced must not be open in another guest: it would go on writing to a file without a name.
 * @throws RestoreError PATH_TAKEN
 */
export async function requireUnused(volumes: readonly RestoredVolume[], uuid: string): Promise<void> {
  for (const { file, existed } of volumes) {
    if (!existed || (await identityOf(file)) === undefined) continue;
    const user = (await foreignGuests(file, uuid))[0];
    if (user === undefined) continue;
    throw new RestoreError(
      'PATH_TAKEN',
      `${file} is open in process ${user.pid} (${user.command}), which is not the machine's own`,
      { hint: 'end that process first, or restore with --as NAME or --to DIR', retryable: true },
    );
  }
}

/** What tells where images are. */
export type ImageSource = Pick<Hypervisor, 'definition' | 'volumePath'>;

/** Every image that a machine uses or would use at its next start, with what each stands on; none once it has gone. */
export async function imagesOf(
  hypervisor: ImageSource,
  machine: MachineSummary,
): Promise<ReadonlySet<string>> {
  const isActive = machine.status.state !== 'shut-off' && machine.status.state !== 'crashed';
  const definitions = [
    ...(machine.persistent ? (['persistent'] as const) : []),
    ...(isActive ? (['live'] as const) : []),
  ];
  const paths = new Set<string>();
  for (const kind of definitions) {
    const definition = await unlessGone(hypervisor.definition(machine.uuid, kind));
    if (definition === undefined) return paths;
    for (const volume of DomainXml.parse(definition).volumes) {
      const image = volume.path ?? (await pathInPool(hypervisor, volume));
      if (image !== undefined) await addChain(image, volume.format, paths);
      for (const { path } of volume.backingChain ?? []) if (path !== undefined) paths.add(path);
    }
  }
  return paths;
}

/** Where a pool volume is, as far as libvirt knows it: a pool that is not active has nothing open. */
async function pathInPool(hypervisor: ImageSource, { pool }: DomainVolume): Promise<string | undefined> {
  if (pool === undefined) return undefined;
  try {
    return await hypervisor.volumePath(pool.name, pool.volume);
  } catch (error) {
    if (error instanceof HypervisorError && !error.retryable) return undefined;
    throw error;
  }
}

/** Adds an image and, from the headers, what is below it. */
async function addChain(top: string, topFormat: string | undefined, paths: Set<string>): Promise<void> {
  let path: string | undefined = top;
  let format = topFormat;
  for (let depth = 0; path !== undefined && depth < chainMax && !paths.has(path); depth += 1) {
    paths.add(path);
    if (format !== 'qcow2') return;
    const backing: { readonly path: string; readonly format?: string | undefined } | null =
      await backingOf(path);
    path = backing?.path;
    format = backing?.format;
  }
}

async function backingOf(
  path: string,
): Promise<{ readonly path: string; readonly format?: string | undefined } | null> {
  try {
    return (await readImageInfo(path, 'qcow2', { inUse: true })).backing;
  } catch (error) {
    // An image that is not there, or not readable, leads nowhere.
    if (error instanceof QemuImageError) return null;
    throw error;
  }
}

/** Below a plain file nothing can be made. */
async function refuseFileAsDirectory(image: string): Promise<void> {
  const above = await nearestExisting(dirname(image));
  if ((await stat(above)).isDirectory()) return;
  throw new RestoreError('PATH_TAKEN', `${above} is a file, and ${image} would be below it`, {
    hint: 'choose another directory with --to DIR',
  });
}

/** Device and inode, by which a file is known under all its names; `undefined` where there is none. */
async function identityOf(path: string): Promise<string | undefined> {
  try {
    const { dev, ino } = await stat(path, { bigint: true });
    return `${dev}:${ino}`;
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR') || isErrno(error, 'EACCES')) return undefined;
    throw error;
  }
}
