import { dirname } from 'node:path';
import type { Config } from '../config/schema.ts';
import { policyFor, type ResolvedPolicy } from '../config/policy.ts';
import type { BackupSettings } from './backup/facts.ts';
import type { BackupGroup } from './backup/group.ts';
import type { Hooks } from './backup/hookFacts.ts';
import { machineLeft } from './backup/leftHost.ts';
import type { LiveSettings } from './backup/liveFacts.ts';
import type { ReadSettings } from './backup/readFacts.ts';
import { AgentError } from './errors.ts';
import { findTemplate, type TemplateRequest } from './templates.ts';
import { decideAuto, type DecidedMode, type Mode } from './backupMode.ts';
import type { Hypervisor, MachineStatus } from './hypervisor/hypervisor.ts';
import { isMigratedAway } from './hypervisor/migration.ts';
import { requireUsable } from './retain/storageRoom.ts';
import type { ChosenStorages } from './retain/storageChoice.ts';
import { chooseStorages } from './storageGroups.ts';
import { planLive } from './snapshot/planLive.ts';
import { planSave } from './snapshot/preflight.ts';
import { whenStarted } from './startingMachine.ts';
import { newId } from '../common/ids.ts';
import type { Storage } from '../storage/storage.ts';

/** Time for copying one backup into its storages. */
const retainDeadlineMs = 7 * 24 * 3600 * 1000;

export interface BackupRequest {
  /** Name or UUID; of a template its name. */
  readonly machine: string;
  /** What is backed up is no machine, but this image, which none runs. */
  readonly template?: TemplateRequest | undefined;
  /** That of the policy unless told. */
  readonly mode?: 'auto' | 'save' | 'live' | 'disk' | 'offline' | undefined;
  /** The machines that are to have the same T1, this one among them. */
  readonly group?: BackupGroup | undefined;
  /** Why this mode, where it is not because somebody asked for it. */
  readonly modeReason?: string | undefined;
  /** Names of storages and storage groups; those of the policy unless told. */
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

export interface RequestParts {
  readonly hypervisor: Hypervisor;
  readonly config: Config;
  readonly configPath: string;
  /** A configured storage. */
  readonly storage: (name: string) => Storage;
  /** What other jobs are still going to write to the RAM disk. */
  readonly ramDiskReservedBytes: () => number;
}

/**
 * Decides how a backup is to be made.
 * @throws HypervisorError MACHINE_NOT_FOUND; SnapshotError MACHINE_LEFT; AgentError MACHINE_EXCLUDED, STORAGE_NOT_CONFIGURED,
 * STORAGE_GROUP_UNUSABLE; ConfigError NO_STORAGE;
 * StorageError when a policy counts backups and one does not answer
 */
export async function decideBackup(request: BackupRequest, parts: RequestParts): Promise<DecidedBackup> {
  const { hypervisor, config, configPath } = parts;
  const { machine: wanted } = request;
  const template =
    request.template === undefined ? undefined : await findTemplate(hypervisor, wanted, request.template);
  const found =
    template === undefined ? await whenStarted(hypervisor, await hypervisor.findMachine(wanted)) : undefined;
  const name = template?.machine.name ?? found?.name ?? wanted;
  if (found !== undefined && isMigratedAway(found.status)) throw machineLeft(name, 'migrated');
  const decision = policyFor(config, name, configPath);
  if (decision.kind === 'excluded') {
    throw new AgentError('MACHINE_EXCLUDED', `${name} is excluded by the rule "${decision.match}"`, {
      hint: `see machines: in ${configPath}`,
    });
  }
  const { policy } = decision;
  const asked = request.storages ?? policy.storages;
  const chosen = await chooseStorages(config, asked, parts.storage, requireUsable);
  const how = settingsFor(request, policy, config, chosen);
  if (template !== undefined) {
    const { machine, image } = template;
    return { machine, settings: how('offline', 'a template: no machine runs it', { image }) };
  }
  if (found === undefined) throw new Error(`neither a machine nor a template: ${wanted}`);
  const { mode, modeReason } = await decideMode(request, policy, found, parts, how);
  return { machine: { uuid: found.uuid, name }, settings: how(mode, modeReason) };
}

type SettingsOf = (
  mode: Mode,
  modeReason: string,
  template?: ReadSettings['template'],
) => DecidedBackup['settings'];

/** How a backup of a policy is made in each mode. */
function settingsFor(
  request: BackupRequest,
  policy: ResolvedPolicy,
  config: Config,
  { storages, storageChoices }: ChosenStorages,
): SettingsOf {
  const runDirectory = dirname(config.agent.socket);
  const common = {
    runDirectory,
    storages: [...storages],
    storageChoices: [...storageChoices],
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
    incremental: policy.incremental,
    hooks: hooksOf(policy),
  };
  const rereadReason = request.reread === true ? 'asked for (--reread)' : null;
  const { live } = policy;
  return (mode, modeReason, template) => {
    const monitoringMarker = config.agent.monitoringMarker && mode !== 'offline';
    const settings = { ...common, modeReason, monitoringMarker };
    if (mode === 'save') return { ...settings, mode };
    if (mode === 'live') {
      const how = {
        memoryFactor: live.memoryFactor,
        convergeMs: live.convergeSeconds * 1000,
        whenNotConverging: live.whenNotConverging,
        longestPauseMs: live.longestPauseSeconds * 1000,
      };
      return { ...settings, mode, group: request.group, rereadReason, ...how };
    }
    const freeze = { policy: policy.freeze, deadlineMs: policy.deadlines.freezeSeconds * 1000 };
    return { ...settings, mode, group: request.group, template, freeze, rereadReason };
  };
}

function hooksOf({ hooks: { preBackup, postBackup, onFailure } }: ResolvedPolicy): Hooks {
  const hookOf = <Hook extends { readonly deadlineSeconds: number }>({ deadlineSeconds, ...hook }: Hook) => ({
    ...hook,
    deadlineMs: deadlineSeconds * 1000,
  });
  return {
    preBackup: preBackup === undefined ? undefined : hookOf(preBackup),
    postBackup: postBackup === undefined ? undefined : hookOf(postBackup),
    onFailure: onFailure === undefined ? undefined : hookOf(onFailure),
  };
}

/** What is asked for wins over the policy; `auto` looks at the machine. */
async function decideMode(
  request: BackupRequest,
  policy: ResolvedPolicy,
  machine: { readonly uuid: string; readonly status: MachineStatus },
  parts: RequestParts,
  how: SettingsOf,
): Promise<DecidedMode> {
  if (request.group !== undefined) return togetherMode(request.mode, request.group.machines);
  const wanted = request.mode ?? policy.mode;
  if (wanted !== 'auto') {
    const asked = request.mode === undefined ? `policy ${policy.name} asks for it` : 'asked for';
    return { mode: wanted, modeReason: request.modeReason ?? asked };
  }
  const { hypervisor } = parts;
  const tryMode = async (mode: 'save' | 'live'): Promise<unknown> => {
    const ramDiskReservedBytes = parts.ramDiskReservedBytes();
    const about = { jobId: newId(), machineUuid: machine.uuid, ramDiskReservedBytes };
    const settings = how(mode, '');
    if (settings.mode === 'live') return planLive(hypervisor, { ...about, ...settings });
    return planSave(hypervisor, { ...about, ...settings, checkpoint: null });
  };
  const storages = how('offline', '').storages.map((name) => parts.storage(name));
  return decideAuto({ machine, policy, hypervisor, storages, tryMode });
}

/** With their memory, all machines of a group stand still until that of the last one is written: only if asked for. */
function togetherMode(asked: BackupRequest['mode'], machines: readonly string[]): DecidedMode {
  const modeReason = `one instant for ${machines.join(', ')}`;
  if (asked === undefined || asked === 'auto' || asked === 'disk') return { mode: 'disk', modeReason };
  if (asked === 'live') return { mode: 'live', modeReason: `${modeReason}, with their memory as asked for` };
  throw new AgentError(
    'TOGETHER_UNSUITABLE',
    `several machines share an instant in mode disk, or with their memory in mode live, not in ${asked}`,
    {
      hint: 'leave --mode away, or --mode live; or leave --together away, and each machine has its own instant',
    },
  );
}

/** The group that requests make. @throws AgentError TOGETHER_UNSUITABLE */
export async function groupOf(
  hypervisor: Hypervisor,
  requests: readonly BackupRequest[],
): Promise<BackupGroup> {
  const names = new Set<string>();
  for (const { machine, template } of requests) {
    if (template !== undefined)
      throw new AgentError('TOGETHER_UNSUITABLE', `${machine} is a template: it has no instant to share`, {
        hint: `stillpoint backup ${machine}`,
      });
    names.add((await hypervisor.findMachine(machine)).name);
  }
  if (names.size >= 2) return { id: newId(), machines: [...names] };
  throw new AgentError('TOGETHER_UNSUITABLE', 'it takes two machines to share an instant', {
    hint: 'name more of them, or leave --together away',
  });
}
