import { readdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { isErrno } from '../common/errors.ts';
import { isUuid } from '../common/ids.ts';
import type { Config } from '../config/schema.ts';
import { DomainXml } from './hypervisor/domainXml.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';
import { unlessGone } from './hypervisor/unlessGone.ts';
import { retainDirectoryFor, retainDirectoryName } from './snapshot/workspace.ts';

/** A directory in which a job works, or worked. */
export interface WorkDirectory {
  readonly jobId: string;
  readonly directory: string;
}

/**
 * Finds the directories of jobs beside the images of all machines and where policies put them. Changes nothing.
 * @throws HypervisorError
 */
export async function findWorkDirectories(
  hypervisor: Hypervisor,
  config: Config,
): Promise<readonly WorkDirectory[]> {
  const places = new Set(
    Object.values(config.policies).flatMap(({ retainDirectory }) => retainDirectory ?? []),
  );
  for (const { uuid } of await hypervisor.machines()) {
    const definition = await unlessGone(hypervisor.definition(uuid, 'live'));
    if (definition === undefined) continue;
    for (const { path } of DomainXml.parse(definition).volumes) {
      if (path === undefined) continue;
      places.add(retainDirectoryFor(path, null));
      // A machine that a live backup has left on its overlay.
      const above = dirname(dirname(path));
      if (basename(above) === retainDirectoryName) places.add(above);
    }
  }
  const found: WorkDirectory[] = [];
  for (const place of places) {
    for (const name of await namesIn(place))
      if (isUuid(name)) found.push({ jobId: name, directory: join(place, name) });
  }
  return found;
}

async function namesIn(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return [];
    throw error;
  }
}
