import type { Agent } from '../agent/agent.ts';
import type { ReplicationRule } from '../agent/policyReplication.ts';
import { replicationFactsSchema } from '../agent/replicationJob.ts';
import { errorRecord } from '../common/errors.ts';
import type { MachineIdentity } from '../storage/storage.ts';
import { shortId } from './backups.ts';
import type { Cli } from './cli.ts';
import { type ExitCode, exitCodeOf, exitCodeOfJob } from './exitCodes.ts';
import { JobFailure } from './jobFailure.ts';
import { styled } from './output.ts';
import type { ProgressView } from './progress.ts';

/** As much of a session as copies need. */
export interface CopySession {
  readonly agent: Pick<Agent, 'replications' | 'run'> & {
    readonly parts: { readonly journal: Pick<Agent['parts']['journal'], 'requestCancel'> };
  };
  readonly view: Pick<ProgressView, 'name' | 'done'>;
  readonly interruption: { readonly signal: AbortSignal };
}

/**
 * The copies that policies ask for after a backup: one at a time, beside the backups that are still made, which they
 * hold up as little as they hold a machine. What goes wrong is told and fails no backup.
 */
export class PolicyCopies {
  readonly #cli: Pick<Cli, 'terminal'>;
  readonly #session: CopySession;
  readonly #codes: ExitCode[] = [];
  #lane: Promise<void> = Promise.resolve();

  constructor(cli: Pick<Cli, 'terminal'>, session: CopySession) {
    this.#cli = cli;
    this.#session = session;
  }

  /** A backup of this machine was made. */
  add(machine: MachineIdentity): void {
    for (const rule of this.#session.agent.replications.rulesFor(machine.name))
      this.#lane = this.#lane.then(() => this.#copy(machine, rule));
  }

  /** Waits for the last one. Returns how each ended. */
  async end(): Promise<readonly ExitCode[]> {
    await this.#lane;
    return this.#codes;
  }

  async #copy(machine: MachineIdentity, rule: ReplicationRule): Promise<void> {
    const { agent, view, interruption } = this.#session;
    const { terminal } = this.#cli;
    const what = `${machine.name}, copy from ${rule.from} to ${rule.to}`;
    if (interruption.signal.aborted) {
      terminal.warning(`${what}: not begun; the next backup of the machine catches up`);
      this.#codes.push(130);
      return;
    }
    try {
      const created = agent.replications.create(machine, rule);
      view.name(created.id, what);
      // A signal that came before the job was written down could not reach it.
      if (interruption.signal.aborted) agent.parts.journal.requestCancel(created.id);
      const job = await agent.run(created);
      view.done(job.id);
      const { copied, copiedFrom } = replicationFactsSchema.parse(job.record);
      for (const id of copied)
        tellCopied(this.#cli, machine, { ...rule, from: copiedFrom?.[id] ?? rule.from }, id);
      const code = exitCodeOfJob(job);
      this.#codes.push(code);
      if (code !== 0) terminal.record(errorRecord(new JobFailure(job)), what);
    } catch (error) {
      const record = errorRecord(error);
      terminal.record(record, what);
      this.#codes.push(exitCodeOf(record.code));
    }
  }
}

/** Tells of a backup that was copied. */
export function tellCopied(
  { terminal }: Pick<Cli, 'terminal'>,
  machine: MachineIdentity,
  { from, to }: ReplicationRule,
  id: string,
): void {
  if (terminal.json) terminal.object({ id, machine, from, to, state: 'copied' });
  else
    terminal.out(
      styled('green', 'copied '),
      styled('bold', machine.name),
      ` from ${from} to ${to}, id ${shortId(id)}`,
    );
}
