import { type ErrorRecord, errorRecord, StillpointError } from '../common/errors.ts';
import { fullnessWarning, type StorageSpace } from '../storage/space.ts';
import type { Storage, StorageCheck } from '../storage/storage.ts';
import type { Agent } from './agent.ts';
import { describeChoice, type StorageChoice } from './retain/storageChoice.ts';

export { describeChoice, type StorageChoice };

/** Whether a storage can be used, and how full it is. */
export interface StorageState extends StorageCheck, StorageSpace {
  readonly kind: Storage['kind'];
  /** What there is to say about its fullness. */
  readonly warning: string | null;
}

/** Which storage of a group the next backup would go to. */
export interface GroupState {
  readonly name: string;
  readonly storages: readonly string[];
  /** `null`: none of them can be used, and `problem` says why. */
  readonly choice: StorageChoice | null;
  readonly problem: ErrorRecord | null;
}

/** Looks at a storage; does not reject for one out of order. */
export async function stateOfStorage(storage: Storage): Promise<StorageState> {
  const check = await storage.check();
  const { quotaBytes, warnPercent } = storage.bounds;
  const about = { ...check, kind: storage.kind, capacityBytes: null, storedBytes: null, quotaBytes };
  if (!check.ok) return { ...about, warning: null };
  try {
    const space = await storage.space();
    return { ...about, ...space, warning: fullnessWarning(storage.name, space, warnPercent) };
  } catch (error) {
    if (!(error instanceof StillpointError)) throw error;
    return { ...about, ok: false, problem: errorRecord(error), warning: null };
  }
}

/** Looks which storage of each group would be used now; does not reject where there is none. */
export async function statesOfGroups(
  agent: Pick<Agent, 'parts' | 'chooseStorage'>,
): Promise<readonly GroupState[]> {
  const states: GroupState[] = [];
  for (const [name, { storages }] of Object.entries(agent.parts.config.storageGroups)) {
    try {
      const { choice } = await agent.chooseStorage(name);
      states.push({ name, storages, choice, problem: null });
    } catch (error) {
      if (!(error instanceof StillpointError)) throw error;
      states.push({ name, storages, choice: null, problem: errorRecord(error) });
    }
  }
  return states;
}
