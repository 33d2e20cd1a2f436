import { randomUUID } from 'node:crypto';
import { type Backend, type CallOptions, listAll } from '../backends/backend.ts';
import { RepositoryError } from './errors.ts';

/** What a store was seen to do. */
export interface Capabilities {
  readonly createExclusive: boolean;
  readonly consistentListing: boolean;
  /** Not there: nobody asked. */
  readonly objectLock?: boolean | undefined;
}

const racers = 8;

/**
 * Finds out what a store does, instead of believing what it says it does. Leaves nothing but what `ObjectLock.isEnforced`
 * does, which is asked only where objects are to be locked.
 */
export async function probeCapabilities(
  backend: Backend,
  { wantsLock = false, ...call }: CallOptions & { readonly wantsLock?: boolean | undefined } = {},
): Promise<Capabilities> {
  const name = `probe/${randomUUID()}`;
  const contents = Array.from({ length: racers }, (_, index) => Buffer.from(`racer ${index}`));
  try {
    const results = await Promise.all(contents.map(async (content) => backend.create(name, [content], call)));
    const there = await backend.read(name, call);
    const winner = results.indexOf('created');
    // A store that looks before it writes may well win this race.
    const isExclusive =
      (await backend.createsExclusively(call)) &&
      results.filter((result) => result === 'created').length === 1 &&
      there?.equals(contents[winner] ?? Buffer.alloc(0)) === true;
    if (there === null) {
      throw new RepositoryError(
        'REPOSITORY_DAMAGED',
        `${backend.location} does not give back what it was given`,
        {
          hint: 'choose another place of storage',
        },
      );
    }
    const listed = await listAll(backend, 'probe/', call);
    const consistentListing = listed.some((object) => object.name === name);
    const found = { createExclusive: isExclusive, consistentListing };
    return wantsLock ? { ...found, objectLock: await locksObjects(backend, call) } : found;
  } finally {
    await backend.delete(name, call);
  }
}

/** Whether what a store is told to keep cannot be deleted, as it was seen to do. */
export async function locksObjects(
  { objectLock }: Pick<Backend, 'objectLock'>,
  call: CallOptions,
): Promise<boolean> {
  return objectLock !== null && (await objectLock.isEnforced(call));
}
