import { dirname } from 'node:path';
import { policyFor } from '../config/policy.ts';
import type { PolicyConfig } from '../config/schema.ts';
import { membersOf, sourcesInto } from '../config/storageGroups.ts';
import type { MachineIdentity } from '../storage/storage.ts';
import type { AgentParts } from './agent.ts';
import type { JobKinds } from './jobKinds.ts';
import type { JobRow } from './jobs/job.ts';
import { planFromSources, type SourcesPlan } from './replication.ts';

/** From where to where a policy has backups copied. */
export type ReplicationRule = Pick<PolicyConfig['replicate'][number], 'from' | 'to'>;

/** What policies say about copies, and what is to be done about it. */
export class PolicyReplication {
  readonly #parts: AgentParts;
  readonly #kinds: JobKinds;

  constructor(parts: AgentParts, kinds: JobKinds) {
    this.#parts = parts;
    this.#kinds = kinds;
  }

  /** The copies of a machine's backups, in the order in which they are made; none for one that is excluded. */
  rulesFor(machineName: string): readonly ReplicationRule[] {
    const { config, configPath } = this.#parts;
    const decision = policyFor(config, machineName, configPath);
    return decision.kind === 'policy' ? decision.policy.replicate : [];
  }

  /** What the journal calls the copies of a machine into a storage, where jobs have the machine that they hold. */
  placeOf(machine: MachineIdentity, to: string): string {
    return `${machine.uuid}@${to}`;
  }

  /**
   * Writes a replication down. It holds no machine, but there is one at a time for each machine and target.
   * @throws JobError MACHINE_BUSY, JOURNAL_UNUSABLE
   */
  create(machine: MachineIdentity, { from, to }: ReplicationRule): JobRow {
    const runDirectory = dirname(this.#parts.config.agent.socket);
    const { sources, siblings } = this.#sourcesOf(machine.name, { from, to });
    return this.#parts.engine.create(this.#kinds.replication(), {
      machineUuid: this.placeOf(machine, to),
      machineName: machine.name,
      state: 'planned',
      facts: { machine, from, sources, siblings, settings: { storages: [to], runDirectory }, copied: [] },
    });
  }

  /** What should have been copied and was not. @throws StorageError, RepositoryError */
  async missing(machine: MachineIdentity, rule: ReplicationRule): Promise<SourcesPlan> {
    const { sources, siblings } = this.#sourcesOf(machine.name, rule);
    return planFromSources(
      sources.map((name) => this.#kinds.storage(name)),
      { machines: [machine.uuid], to: this.#kinds.storage(rule.to), older: false, siblings },
    );
  }

  #sourcesOf(
    machineName: string,
    { from, to }: ReplicationRule,
  ): { readonly sources: string[]; readonly siblings: string[] } {
    const { config } = this.#parts;
    const rules = [...this.rulesFor(machineName), { from, to }];
    return { sources: [...membersOf(config, from)], siblings: [...sourcesInto(config, rules, to)] };
  }
}
