import { dirname } from 'node:path';
import type { Config } from '../config/schema.ts';
import { policyFor, type ResolvedPolicy } from '../config/policy.ts';
import type { BackupSettings } from './backup/facts.ts';
import type { LiveSettings } from './backup/liveFacts.ts';
import type { ReadSettings } from './backup/readFacts.ts';
import { AgentError } from './errors.ts';
import type { Hypervisor, MachineStatus } from './hypervisor/hypervisor.ts';

/** Time for copying one backup into its storages. */
const retainDeadlineMs = 7 * 24 * 3600 * 1000;

export interface BackupRequest {
  /** Name or UUID. */
  readonly machine: string;
  /** That of the policy unless told. */
  readonly mode?: 'auto' | 'save' | 'live' | 'disk' | 'offline' | undefined;
  /** Why this mode, where it is not because somebody asked for it. */
  readonly modeReason?: string | undefined;
  /** Names of storages; those of the policy unless told. */
  readonly storages?: readonly string[] | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** Read every volume in full, although increments are possible. */
  readonly reread?: boolean | undefined;
}

/** A request with everything decided that does not need a look at the machine's volumes. */
export interface DecidedBackup {
  readonly machine: { readonly uuid: string; readonly name: string };
  readonly settings: BackupSettings | LiveSettings | ReadSettings;
}

/**
 * Decides how a backup is to be made.
 * @throws HypervisorError MACHINE_NOT_FOUND; AgentError MACHINE_EXCLUDED; ConfigError NO_STORAGE
 */
export async function decideBackup(
  request: BackupRequest,
  parts: { readonly hypervisor: Hypervisor; readonly config: Config; readonly configPath: string },
): Promise<DecidedBackup> {
  const { hypervisor, config, configPath } = parts;
  const { uuid, name, status } = await hypervisor.findMachine(request.machine);
  const decision = policyFor(config, name, configPath);
  if (decision.kind === 'excluded') {
    throw new AgentError('MACHINE_EXCLUDED', `${name} is excluded by the rule "${decision.match}"`, {
      hint: `see machines: in ${configPath}`,
    });
  }
  const { policy } = decision;
  const { mode, modeReason } = decideMode(request, policy, status);
  const settings = {
    modeReason,
    storages: [...new Set(request.storages ?? policy.storages)],
    retainDirectory: policy.retainDirectory,
    ramDisk: config.agent.ramDisk,
    mergeBandwidthBytesPerSecond: policy.merge.bandwidthBytesPerSecond,
    readBandwidthBytesPerSecond: policy.read.bandwidthBytesPerSecond,
    includeSharedBase: policy.merge.includeSharedBase,
    saveDeadlineMs: policy.deadlines.saveSeconds * 1000,
    restoreDeadlineMs: policy.deadlines.restoreSeconds * 1000,
    mergeDeadlineMs: policy.deadlines.mergeSeconds * 1000,
    retainDeadlineMs,
    labels: { ...request.labels },
  };
  const machine = { uuid, name };
  if (mode === 'save') return { machine, settings: { ...settings, mode } };
  const runDirectory = dirname(config.agent.socket);
  const freeze = { policy: policy.freeze, deadlineMs: policy.deadlines.freezeSeconds * 1000 };
  const rereadReason = request.reread === true ? 'asked for (--reread)' : null;
  const reading = { freeze, incremental: policy.incremental, rereadReason };
  if (mode !== 'live') return { machine, settings: { ...settings, mode, runDirectory, ...reading } };
  const { live } = policy;
  const how = {
    memoryFactor: live.memoryFactor,
    convergeMs: live.convergeSeconds * 1000,
    whenNotConverging: live.whenNotConverging,
    longestPauseMs: live.longestPauseSeconds * 1000,
  };
  return { machine, settings: { ...settings, mode, runDirectory, ...how } };
}

/** What is asked for wins over the policy; `auto` looks whether there is a memory to keep. */
function decideMode(
  request: BackupRequest,
  policy: ResolvedPolicy,
  status: MachineStatus,
): { readonly mode: 'save' | 'live' | 'disk' | 'offline'; readonly modeReason: string } {
  const wanted = request.mode ?? policy.mode;
  if (wanted !== 'auto') {
    const asked = request.mode === undefined ? `policy ${policy.name} asks for it` : 'asked for';
    return { mode: wanted, modeReason: request.modeReason ?? asked };
  }
  if (status.state === 'shut-off' || status.state === 'crashed')
    return { mode: 'offline', modeReason: 'auto: the machine is off' };
  return { mode: 'save', modeReason: 'auto: the machine runs, and its memory is kept too' };
}
