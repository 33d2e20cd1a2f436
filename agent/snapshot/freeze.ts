import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../../common/errors.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';

/** How long the agent may take for a question, and for one thaw. */
const answerMs = 5_000;
const retryMs = 500;

/** What a freeze made of a backup. */
export interface Freeze {
  readonly consistency: 'filesystem' | 'crash';
  /** Why it is that, in words. */
  readonly consistencyReason: string;
  /** From the request to freeze until the guest was thawed; `null` when nothing was frozen. */
  readonly freezeMs: number | null;
}

export interface FreezeOptions {
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly policy: 'auto' | 'never' | 'required';
  /**
   * How long the guest's agent may take to freeze, and a third of that for the thaw; then the backup is given up:
   * libvirt does not notice that an agent is gone, or back, while a backup is under way (docs/BEHAVIOUR.md).
   */
  readonly deadlineMs: number;
  /** Writes down, durably, that the guest may be frozen, or that it is not any more. */
  readonly mark: (frozen: boolean) => Promise<void>;
  readonly warn: (message: string) => void;
}

/**
 * Does `act` while the guest's file systems are frozen, if they can be, and thaws them whatever comes of it.
 * The guest counts as frozen only when its agent says at the thaw that it still was: some guests thaw by themselves.
 * @throws SnapshotError GUEST_NOT_FROZEN where the policy requires it, CANNOT_THAW; what `act` throws
 */
export async function whileFrozen<T>(
  hypervisor: Hypervisor,
  options: FreezeOptions,
  act: () => Promise<T>,
): Promise<{ readonly result: T; readonly freeze: Freeze }> {
  const { machine, policy } = options;
  const refused =
    policy === 'never'
      ? 'the policy freezes no guest'
      : ((await whyNot(hypervisor, machine.uuid)) ?? (await freeze(hypervisor, options)));
  if (refused !== undefined) {
    if (policy === 'required') throw notFrozen(machine.name, refused);
    return { result: await act(), freeze: crash(refused, null) };
  }
  const beganMs = performance.now();
  let result: T;
  let thawed: number | null = null;
  try {
    result = await act();
  } finally {
    thawed = await thawWithin(hypervisor, machine.uuid, options.deadlineMs / 3);
    if (thawed !== null) await options.mark(false);
  }
  if (thawed === null) throw agentLost(machine.name);
  const freezeMs = performance.now() - beganMs;
  if (thawed > 0) {
    const consistencyReason = `the guest's agent froze ${thawed} file system(s)`;
    return { result, freeze: { consistency: 'filesystem', consistencyReason, freezeMs } };
  }
  const doubt = 'the guest was thawed before T1';
  if (policy === 'required') throw notFrozen(machine.name, doubt);
  options.warn(`${machine.name}: ${doubt}`);
  return { result, freeze: crash(doubt, freezeMs) };
}

/**
 * Asks for a thaw until it succeeds.
 * @returns how many file systems were thawed; 0 too for a machine that is off or gone; `null` when the agent did not
 * answer within `patienceMs`
 */
export async function thawWithin(
  hypervisor: Hypervisor,
  uuid: string,
  patienceMs: number,
): Promise<number | null> {
  const endMs = performance.now() + patienceMs;
  for (;;) {
    try {
      return await hypervisor.thawGuest(uuid, answerMs);
    } catch (error) {
      if (!(error instanceof HypervisorError)) throw error;
      if (error.code === 'MACHINE_NOT_FOUND') return 0;
      if (error.code === 'MACHINE_STATE_INVALID' && (await isOff(hypervisor, uuid))) return 0;
    }
    if (performance.now() >= endMs) return null;
    await sleep(retryMs);
  }
}

/** A guest of which nobody knows whether it is frozen. */
export function cannotThaw(name: string): SnapshotError {
  return new SnapshotError(
    'CANNOT_THAW',
    `the file systems of the guest ${name} may still be frozen, and its agent does not answer`,
    {
      hint: `restart the agent in the guest (systemctl restart qemu-guest-agent; twice if it was not running), or there: fsfreeze --unfreeze MOUNTPOINT; then: stillpoint job retry <id>`,
      retryable: true,
    },
  );
}

function agentLost(name: string): SnapshotError {
  return new SnapshotError(
    'CANNOT_THAW',
    `the agent of ${name} stopped to answer while its guest was frozen; the backup was given up for it`,
    {
      hint: 'look in the guest why: journalctl -u qemu-guest-agent; mode "disk" needs no agent with freeze: never',
      retryable: true,
    },
  );
}

/** Why a guest cannot be frozen; `undefined` when it can. An agent that is not asked cannot freeze it later. */
async function whyNot(hypervisor: Hypervisor, uuid: string): Promise<string | undefined> {
  const { status } = await hypervisor.machine(uuid);
  if (status.state === 'paused') return 'the machine is suspended';
  const definition = DomainXml.parse(await hypervisor.definition(uuid, 'live'));
  if (definition.guestAgent === undefined) return 'the machine has no channel for a guest agent';
  if (definition.guestAgent === 'disconnected') return 'no agent runs in the guest';
  try {
    await hypervisor.askGuest(uuid, answerMs);
    return undefined;
  } catch (error) {
    if (error instanceof HypervisorError) return `the guest's agent is not ready: ${messageOf(error)}`;
    throw error;
  }
}

/**
 * @returns why nothing is frozen
 * @throws SnapshotError CANNOT_THAW when nobody knows
 */
async function freeze(hypervisor: Hypervisor, options: FreezeOptions): Promise<string | undefined> {
  const { machine, deadlineMs } = options;
  await options.mark(true);
  let refused: string;
  try {
    if ((await hypervisor.freezeGuest(machine.uuid, deadlineMs)) > 0) return undefined;
    refused = "the guest's agent found no file system to freeze";
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error;
    refused = messageOf(error);
  }
  // It may have been slow only, and freeze the guest when nobody expects it any more (trap 5).
  if ((await thawWithin(hypervisor, machine.uuid, deadlineMs)) === null) throw agentLost(machine.name);
  await options.mark(false);
  options.warn(`the guest of ${machine.name} is not frozen: ${refused}`);
  return refused;
}

async function isOff(hypervisor: Hypervisor, uuid: string): Promise<boolean> {
  const machine = (await hypervisor.machines()).find((candidate) => candidate.uuid === uuid);
  return machine === undefined || machine.status.state === 'shut-off' || machine.status.state === 'crashed';
}

function crash(consistencyReason: string, freezeMs: number | null): Freeze {
  return { consistency: 'crash', consistencyReason, freezeMs };
}

function notFrozen(name: string, reason: string): SnapshotError {
  return new SnapshotError('GUEST_NOT_FROZEN', `the guest of ${name} was not frozen: ${reason}`, {
    hint: 'the policy requires it (freeze: required); see to the agent in the guest, or set freeze: auto',
    retryable: true,
  });
}
