import { dirname } from 'node:path';
import { keepIn, policyFor } from '../config/policy.ts';
import { type Config, emptyPolicy } from '../config/schema.ts';
import { membersOf, sourcesInto } from '../config/storageGroups.ts';
import { StillpointError } from '../common/errors.ts';
import { StorageError } from '../storage/errors.ts';
import { isTemplate } from '../storage/template.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import type { Hypervisor, MachineSummary } from './hypervisor/hypervisor.ts';
import { hostTimeZone } from './retain/periods.ts';
import { decideRetention, type KeepRules, type RetentionDecision } from './retain/retention.ts';
import { planReplication } from './replication.ts';
import { type OnUnreachable, StoredBackups } from './storedBackups.ts';

export interface PruneRequest {
  /** Names or UUIDs; without one, every machine that is on the host and not excluded. */
  readonly machines: readonly string[];
  /** Names of storages; all of them unless told. */
  readonly storages?: readonly string[] | undefined;
}

/** Why one backup stays, or that nothing keeps it. */
export interface PruneDecision {
  readonly entry: BackupEntry;
  readonly keep: boolean;
  readonly reasons: readonly string[];
}

/** What pruning does with the backups of one machine in one storage. */
export interface Pruning {
  readonly storage: string;
  /** `uuid` is `null` where no manifest of it can be read. */
  readonly machine: { readonly name: string; readonly uuid: string | null };
  /** Name of the policy whose rules apply. */
  readonly policy: string;
  readonly keep: KeepRules | null;
  readonly timeZone: string;
  /** The moment for which it is decided, then as now: a backup that is made meanwhile pushes none out. */
  readonly now: Date;
  /** Why nothing of it is removed, whatever the rules say. */
  readonly skipped: string | null;
  /** Oldest first. */
  readonly decisions: readonly PruneDecision[];
}

/** Hears what becomes of a plan. */
export interface PruneListener {
  removed(pruning: Pruning, entry: BackupEntry): void;
  /** It was to go, and something keeps it now. */
  keptAfterAll(pruning: Pruning, decision: PruneDecision): void;
  /** This one could not be removed; with `null` nothing more of this machine in this storage is. */
  failed(pruning: Pruning, entry: BackupEntry | null, error: unknown): void;
}

interface PrunerParts {
  readonly config: Config;
  readonly configPath: string;
  readonly hypervisor: Pick<Hypervisor, 'machines' | 'findMachine'>;
  readonly storages: ReadonlyMap<string, Storage>;
}

/** Backups of one machine in one storage. */
interface Group {
  readonly storage: string;
  readonly uuid: string | null;
  readonly entries: BackupEntry[];
}

type Decisions = readonly RetentionDecision<{ readonly entry: BackupEntry } & Candidate>[];
type Candidate = ReturnType<typeof candidateOf>;

/** Removes what the retention rules of the policies do not keep: per machine and per storage, each on its own. */
export class Pruner {
  readonly #parts: PrunerParts;
  readonly #deleteBackup: (entry: BackupEntry) => Promise<void>;

  /** @param deleteBackup refuses what a restore reads */
  constructor(parts: PrunerParts, deleteBackup: (entry: BackupEntry) => Promise<void>) {
    this.#parts = parts;
    this.#deleteBackup = deleteBackup;
  }

  /**
   * Decides about every backup of the machines that were asked for; changes nothing.
   *
   * @param onUnreachable is told of a storage that does not answer; the others are pruned without it
   * @throws ConfigError NO_STORAGE; HypervisorError MACHINE_NOT_FOUND for a name that neither libvirt nor any
   *   backup knows
   */
  async plan(request: PruneRequest, onUnreachable: OnUnreachable): Promise<readonly Pruning[]> {
    const now = new Date();
    let isComplete = true;
    const storages = new Map(
      [...this.#parts.storages].filter(([name]) => request.storages?.includes(name) ?? true),
    );
    const stored = new StoredBackups({ storages, configPath: this.#parts.configPath });
    const entries = await stored.list(undefined, (storage, error) => {
      isComplete = false;
      onUnreachable(storage, error);
    });
    const machines = await this.#parts.hypervisor.machines();
    const groups = groupsOf(entries);
    const plan = async (chosen: Iterable<Group>, isNamed: boolean): Promise<readonly Pruning[]> => {
      const planned: Pruning[] = [];
      for (const group of chosen) planned.push(await this.#planGroup(group, { machines, isNamed, now }));
      return sorted(planned);
    };
    if (request.machines.length === 0) return plan(groups, false);
    const named = new Set<Group>();
    for (const name of new Set(request.machines)) {
      const mine = groupsNamed(groups, machines, name);
      if (mine.length === 0 && isComplete) await this.#parts.hypervisor.findMachine(name);
      for (const group of mine) named.add(group);
    }
    return plan(named, true);
  }

  /**
   * Removes what a plan says, oldest first, and nothing beyond it. Before each removal the storage is looked at and
   * decided about anew; before the first one of a machine its last good backup is checked, in each storage: if one
   * is not complete, nothing of the machine is removed anywhere.
   *
   * @param options.signal ends it between two removals
   */
  async run(
    prunings: readonly Pruning[],
    options: { readonly signal: AbortSignal; readonly listener: PruneListener },
  ): Promise<void> {
    const ready: { readonly pruning: Pruning; readonly checked: Set<string> }[] = [];
    const damaged = new Map<string | null, unknown>();
    for (const pruning of prunings) {
      if (pruning.skipped !== null || pruning.decisions.every(({ keep }) => keep)) continue;
      const checked = new Set<string>();
      try {
        await this.#requireLastGood(pruning, await this.#decideAnew(pruning), checked);
        ready.push({ pruning, checked });
      } catch (error) {
        if (error instanceof StorageError && error.code === 'BACKUP_DAMAGED')
          damaged.set(pruning.machine.uuid, error);
        options.listener.failed(pruning, null, error);
      }
    }
    for (const { pruning, checked } of ready) {
      const error = damaged.get(pruning.machine.uuid);
      if (error !== undefined) options.listener.failed(pruning, null, error);
      else await this.#runOne(pruning, { ...options, checked });
    }
  }

  async #runOne(
    pruning: Pruning,
    options: {
      readonly signal: AbortSignal;
      readonly listener: PruneListener;
      readonly checked: Set<string>;
    },
  ): Promise<void> {
    const { signal, listener, checked } = options;
    const agreed = new Set(pruning.decisions.filter(({ keep }) => !keep).map(({ entry }) => keyOf(entry)));
    try {
      while (!signal.aborted) {
        const decisions = await this.#decideAnew(pruning);
        const left = decisions.filter(({ backup }) => agreed.has(keyOf(backup.entry)));
        const next = left.find(({ keep }) => !keep)?.backup.entry;
        if (next === undefined) {
          for (const { backup, keep, reasons } of left)
            listener.keptAfterAll(pruning, { entry: backup.entry, keep, reasons });
          return;
        }
        await this.#requireLastGood(pruning, decisions, checked);
        agreed.delete(keyOf(next));
        await this.#remove(pruning, next, listener);
      }
    } catch (error) {
      listener.failed(pruning, null, error);
    }
  }

  /** A backup that cannot be removed holds up no other one; a storage that is away does. */
  async #remove(pruning: Pruning, entry: BackupEntry, listener: PruneListener): Promise<void> {
    try {
      await this.#deleteBackup(entry);
    } catch (error) {
      if (error instanceof StorageError && error.code === 'STORAGE_UNREACHABLE') throw error;
      listener.failed(pruning, entry, error);
      return;
    }
    listener.removed(pruning, entry);
  }

  async #decideAnew(pruning: Pruning): Promise<Decisions> {
    const entries = await this.#storage(pruning.storage).list();
    const group = groupsOf(entries).find(({ uuid }) => uuid === pruning.machine.uuid);
    return this.#decide(group?.entries ?? [], pruning);
  }

  /** By the rules; and what a policy has copied on stays until it is. */
  async #decide(
    entries: readonly BackupEntry[],
    pruning: Pick<Pruning, 'keep' | 'timeZone' | 'now' | 'storage' | 'machine' | 'policy'>,
  ): Promise<Decisions> {
    const decisions = decide(entries, pruning);
    if (decisions.every(({ keep }) => keep)) return decisions;
    const { config } = this.#parts;
    const rules = (config.policies[pruning.policy] ?? emptyPolicy()).replicate;
    const waiting = new Map<string, string>();
    for (const { from, to } of rules) {
      if (!membersOf(config, from).includes(pruning.storage)) continue;
      const places = { from: pruning.storage, to, siblings: sourcesInto(config, rules, to) };
      for (const [key, why] of await this.#uncopied(entries, pruning.machine.uuid, places))
        waiting.set(key, why);
    }
    return decisions.map((decision) => {
      const why = waiting.get(keyOf(decision.backup.entry));
      return why === undefined || decision.keep ? decision : { ...decision, keep: true, reasons: [why] };
    });
  }

  /** Backups that are still to be copied, with why they stay; all of them where that cannot be found out. */
  async #uncopied(
    entries: readonly BackupEntry[],
    uuid: string | null,
    {
      from,
      to,
      siblings,
    }: { readonly from: string; readonly to: string; readonly siblings: readonly string[] },
  ): Promise<readonly (readonly [key: string, why: string])[]> {
    try {
      const storages = { from: this.#storage(from), to: this.#storage(to) };
      const missing = await planReplication({ machines: [uuid ?? ''], ...storages, older: false, siblings });
      return missing.map(({ entry }) => [keyOf(entry), `it is not copied to ${to} yet`]);
    } catch (error) {
      if (!(error instanceof StillpointError)) throw error;
      const why = `whether ${to} has it cannot be found out: ${error.message}`;
      return entries.map((entry) => [keyOf(entry), why]);
    }
  }

  /** What everything else may go for must be there: presence, sizes and structure, not every byte. */
  async #requireLastGood(pruning: Pruning, decisions: Decisions, checked: Set<string>): Promise<void> {
    const last = decisions.find(({ isLastGood }) => isLastGood)?.backup.entry;
    if (last === undefined || checked.has(keyOf(last))) return;
    const report = await this.#storage(pruning.storage).verify(last, { data: false });
    if (!report.ok) {
      const wrong = report.files.filter(({ verdict }) => verdict !== 'ok');
      const what = wrong.map(({ file, verdict, detail }) => `${file}: ${detail ?? verdict}`).join('; ');
      throw new StorageError(
        'BACKUP_DAMAGED',
        `nothing of ${pruning.machine.name} is removed: its last good backup in ${pruning.storage} is damaged: ${what}`,
        { hint: `stillpoint verify ${last.id ?? last.directory} --data; then back the machine up again` },
      );
    }
    checked.add(keyOf(last));
  }

  async #planGroup(
    group: Group,
    {
      machines,
      isNamed,
      now,
    }: { readonly machines: readonly MachineSummary[]; readonly isNamed: boolean; readonly now: Date },
  ): Promise<Pruning> {
    const { config, configPath } = this.#parts;
    const present = machines.find(({ uuid }) => uuid === group.uuid);
    const newest = group.entries.findLast(({ machine }) => machine.uuid === group.uuid);
    const name = present?.name ?? newest?.machine.name ?? '';
    const decision = policyFor(config, name, configPath);
    const policy =
      decision.kind === 'policy'
        ? decision.policy
        : { ...(config.policies['default'] ?? emptyPolicy()), name: 'default' };
    let skipped: string | null = null;
    if (!isNamed && decision.kind === 'excluded')
      skipped = `the machine is excluded by the rule "${decision.match}": not pruned unless it is named`;
    const isOurTemplate =
      newest?.manifest != null &&
      isTemplate(newest.manifest) &&
      config.templates.some((template) => template.name === name);
    if (!isNamed && present === undefined && !isOurTemplate)
      skipped = 'the machine is not on this host: not pruned unless it is named';
    const about = {
      storage: group.storage,
      machine: { name, uuid: group.uuid },
      policy: policy.name,
      keep: keepIn(policy, group.storage),
      timeZone: policy.timeZone ?? hostTimeZone(),
      now,
      skipped,
    };
    const decided = await this.#decide(group.entries, about);
    const decisions = decided.map(({ backup, keep, reasons }): PruneDecision => {
      const kept = skipped === null || !backup.good ? { keep, reasons } : { keep: true, reasons: [skipped] };
      return { entry: backup.entry, ...kept };
    });
    return { ...about, decisions };
  }

  #storage(name: string): Storage {
    const storage = this.#parts.storages.get(name);
    if (storage === undefined) throw new Error(`a plan for a storage that is not there: ${name}`);
    return storage;
  }
}

function candidateOf(entry: BackupEntry) {
  const { id, directory, pointInTime, state } = entry;
  const { protected: isProtected, lockedUntil } = entry;
  return {
    entry,
    id: id ?? directory,
    pointInTime,
    good: state === 'Active',
    protected: isProtected,
    lockedUntil,
  };
}

function decide(
  entries: readonly BackupEntry[],
  rules: Pick<Pruning, 'keep' | 'timeZone' | 'now'>,
): Decisions {
  return decideRetention(entries.map(candidateOf), rules);
}

function sorted(prunings: readonly Pruning[]): readonly Pruning[] {
  return prunings.toSorted(
    (a, b) => a.machine.name.localeCompare(b.machine.name) || a.storage.localeCompare(b.storage),
  );
}

/** The same backup at the same place. */
function keyOf({ directory, id }: BackupEntry): string {
  return `${directory}\n${id}`;
}

/** By storage and UUID: names change, and are given again. What cannot be read goes with what stands beside it. */
function groupsOf(entries: readonly BackupEntry[]): readonly Group[] {
  const groups: Group[] = [];
  const readableFirst = entries.toSorted(
    (a, b) => Number(a.machine.uuid === null) - Number(b.machine.uuid === null),
  );
  for (const entry of readableFirst) {
    const { storage, machine } = entry;
    const group = groups
      .filter((candidate) => candidate.storage === storage)
      .find(({ uuid, entries: others }) =>
        machine.uuid === null
          ? others.some(({ directory }) => dirname(directory) === dirname(entry.directory))
          : uuid === machine.uuid,
      );
    if (group === undefined) groups.push({ storage, uuid: machine.uuid, entries: [entry] });
    else group.entries.push(entry);
  }
  return groups;
}

/** A name means the machine that has it now; only if there is none, those that had it when they were backed up. */
function groupsNamed(
  groups: readonly Group[],
  machines: readonly MachineSummary[],
  name: string,
): readonly Group[] {
  const present = machines.find((machine) => machine.name === name || machine.uuid === name);
  const isNamedSo = ({ entries }: Group): boolean => entries.some(({ machine }) => machine.name === name);
  if (present !== undefined) {
    return groups.filter((group) => group.uuid === present.uuid || (group.uuid === null && isNamedSo(group)));
  }
  return groups.filter(
    (group) => group.uuid === name || (machines.every(({ uuid }) => uuid !== group.uuid) && isNamedSo(group)),
  );
}
