import type { Backend, CallOptions } from '../backends/backend.ts';
import type { DisplacedObject } from '../backends/objectLock.ts';
import { lockedPrefixes } from './lockedStore.ts';

/**
 * Everything of a repository that was stored under retention and that a read does not find, because somebody has
 * deleted or overwritten it. Needs no key: without the configuration or the key slots nothing could be opened.
 */
export async function displacedObjects(
  { objectLock }: Pick<Backend, 'objectLock'>,
  call: CallOptions = {},
): Promise<readonly DisplacedObject[]> {
  const found: DisplacedObject[] = [];
  if (objectLock === null) return found;
  for (const prefix of lockedPrefixes)
    for await (const object of objectLock.displaced(prefix, call)) found.push(object);
  return found;
}
