import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { StepContext } from '../jobs/step.ts';
import { thawWithin, whileFrozen } from '../snapshot/freeze.ts';
import type { ReadFacts } from './readFacts.ts';

type Context = StepContext<ReadFacts>;

/** Makes T1 of a running machine by `begin`, with its guest frozen where that can be. */
export async function beginFrozen(
  hypervisor: Hypervisor,
  context: Context,
  begin: () => Promise<Date>,
): Promise<{ readonly at: Date; readonly freeze: ReadFacts['freeze'] }> {
  const options = {
    machine: context.facts.machine,
    ...context.facts.settings.freeze,
    mark: async (frozen: boolean): Promise<void> => {
      context.commit({ frozen });
      await context.point(frozen ? 'freezing' : 'thawed');
    },
    warn: (message: string) => context.warn(message),
  };
  const { result, freeze } = await whileFrozen(hypervisor, options, async () => {
    if (context.facts.frozen === true) await context.point('frozen');
    return begin();
  });
  return { at: result, freeze };
}

/**
 * Thaws a guest that a job may have left frozen.
 * @param how `once`: one try, before anything else is put in order; `patiently`: for longer than libvirt may still
 * wait for the freeze that a dead agent of ours has asked for
 * @returns false when it may still be frozen
 */
export async function thawInRecovery(
  hypervisor: Hypervisor,
  context: Context,
  how: 'once' | 'patiently',
): Promise<boolean> {
  const { frozen, settings, machine } = context.facts;
  if (frozen !== true) return true;
  const patienceMs = how === 'once' ? 0 : (settings.freeze.deadlineMs * 4) / 3;
  const thawed = await thawWithin(hypervisor, machine.uuid, patienceMs);
  if (thawed === null) return false;
  context.commit({ frozen: false });
  if (thawed > 0) context.warn(`recovery: the guest of ${machine.name} was still frozen, and is thawed now`);
  return true;
}
