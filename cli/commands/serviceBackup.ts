import { backupModeValues, jobStateValues, wordOf } from '../../agent/api/enums.ts';
import { recordOfDetail } from '../../agent/api/grpcErrors.ts';
import type { BackupRequest } from '../../agent/backupRequests.ts';
import { errorRecord } from '../../common/errors.ts';
import {
  BackupMode,
  type Job,
  type PolicyCopy,
  type StartedBackup,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { AgentClient } from '../api/agentClient.ts';
import { followCopies, followJob } from '../api/followJob.ts';
import { backupOf, choiceOf, jobOf, machineOf, type ToldJob } from '../api/fromMessages.ts';
import { ServiceFailure } from '../api/serviceFailure.ts';
import { ServiceInterruption } from '../api/serviceInterruption.ts';
import { type Outcome, printOutcome, printTable } from '../backupOutcome.ts';
import type { Cli } from '../cli.ts';
import { combinedExitCode, type ExitCode, exitCodeOf, exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import { type Choice, chooseMachines } from '../machineChoice.ts';
import { runLimited } from '../parallel.ts';
import { tellCopied } from '../policyCopies.ts';
import { ProgressView } from '../progress.ts';
import { readConfig } from '../session.ts';

/** Streams at a time; the service runs far fewer backups at a time, in their order. */
const watchedMax = 32;

/** Has the service back machines up, and tells of it as if this process did. */
export async function backupByService(
  cli: Cli,
  client: AgentClient,
  choice: Choice,
  wishes: Omit<BackupRequest, 'machine'>,
): Promise<ExitCode> {
  const { mode, storages = [], labels = {}, reread = false } = wishes;
  // Before anything is begun: a signal that comes meanwhile is for what will be.
  using interruption = new ServiceInterruption(cli.terminal, client);
  const started = await client.startBackup({
    machines: [...(await chosenMachines(cli, client, choice))],
    mode: mode === undefined ? BackupMode.BACKUP_MODE_UNSPECIFIED : backupModeValues[mode],
    storages: [...storages],
    labels: { ...labels },
    reread,
  });
  return await followAll(cli, client, { started, interruption });
}

async function chosenMachines(cli: Cli, client: AgentClient, choice: Choice): Promise<readonly string[]> {
  const needsAll = choice.all || [...choice.typed, ...choice.exclude].some((word) => /[*?]/.test(word));
  const machines = needsAll ? (await client.machines()).map(machineOf) : [];
  const { config } = await readConfig(cli);
  return chooseMachines(machines, { config, configPath: cli.configPath }, choice);
}

async function followAll(
  cli: Cli,
  client: AgentClient,
  {
    started,
    interruption,
  }: { readonly started: readonly StartedBackup[]; readonly interruption: ServiceInterruption },
): Promise<ExitCode> {
  const view = new ProgressView(cli.terminal);
  const jobs = started.flatMap(({ outcome }) => (outcome?.$case === 'job' ? [jobOf(outcome.value)] : []));
  for (const { id, machineName } of jobs) {
    view.name(id, machineName);
    interruption.add(id, machineName);
  }
  const outcomes: Outcome[] = [];
  const copyCodes: ExitCode[] = [];
  const limits = { total: watchedMax, uses: () => [], limitOf: () => undefined };
  try {
    await runLimited([...started.entries()], limits, async ([index, one]) => {
      const follower = new BackupFollower({ cli, client, view, interruption });
      outcomes[index] = await follower.follow(one);
      copyCodes.push(...follower.copyCodes);
    });
  } finally {
    view.end();
  }
  if (outcomes.length > 1 && !cli.terminal.json) printTable(cli, outcomes);
  return combinedExitCode([...outcomes.map(({ code }) => code), ...copyCodes]);
}

interface FollowerParts {
  readonly cli: Cli;
  readonly client: AgentClient;
  readonly view: ProgressView;
  readonly interruption: ServiceInterruption;
}

/** Follows the backup of one machine, and tells how it and the copies after it have ended. */
class BackupFollower {
  readonly copyCodes: ExitCode[] = [];
  readonly #parts: FollowerParts;

  constructor(parts: FollowerParts) {
    this.#parts = parts;
  }

  /** Never rejects: what went wrong is the outcome. */
  async follow({ machine, outcome }: StartedBackup): Promise<Outcome> {
    if (outcome === undefined) return this.#tellFailure(machine, undefined);
    if (outcome.$case === 'error') return this.#tellFailure(machine, new ServiceFailure(outcome.value));
    const { id } = outcome.value;
    const { client, interruption, view } = this.#parts;
    const listener = view.listener();
    let current = id;
    try {
      const job = await followJob(client, id, {
        // The line of the machine is that of its first job, also when another one has taken its place.
        job: (now) => {
          listener.state?.(id, now.state);
          if (now.id === current) return;
          interruption.delete(current);
          current = now.id;
          interruption.add(current, now.machineName);
        },
        progress: (progress) => listener.progress?.({ ...progress, jobId: id }),
        warning: (message) => listener.warning?.(id, message),
      });
      const told = await this.#tell(job);
      interruption.delete(current);
      if (told.backup !== null) await this.#followCopies(outcome.value);
      return told;
    } catch (error) {
      return this.#tellFailure(machine, error);
    } finally {
      view.done(id);
    }
  }

  async #followCopies(job: Job): Promise<void> {
    const { cli, client, interruption } = this.#parts;
    try {
      await followCopies(client, job.id, (copy) => this.#tellCopy(job, copy), interruption.signal);
    } catch (error) {
      cli.terminal.error(error, job.machine?.name);
      this.copyCodes.push(exitCodeOf(errorRecord(error).code));
    }
  }

  async #tell(job: ToldJob): Promise<Outcome> {
    const code = exitCodeOfJob(job);
    const error = code === 0 ? null : errorRecord(new JobFailure(job));
    const { job: message, backup } = await this.#parts.client.job(job.id);
    const outcome = {
      machine: job.machineName,
      code,
      error,
      backup: backup === undefined || code !== 0 ? null : backupOf(backup),
      storageChoices: message?.storageChoices.map(choiceOf) ?? [],
      warnings: message?.warnings ?? [],
    };
    printOutcome(this.#parts.cli, outcome);
    return outcome;
  }

  #tellFailure(machine: string, error: unknown): Outcome {
    const record = errorRecord(error);
    const nothing = { backup: null, storageChoices: [], warnings: [] };
    const outcome = { machine, code: exitCodeOf(record.code), error: record, ...nothing };
    printOutcome(this.#parts.cli, outcome);
    return outcome;
  }

  #tellCopy({ machine }: Job, copy: PolicyCopy): void {
    const { fromStorage: from, toStorage: to, jobId: id, backupIds, error: detail } = copy;
    const identity = { uuid: machine?.uuid ?? '', name: machine?.name ?? '' };
    for (const backupId of backupIds) tellCopied(this.#parts.cli, identity, { from, to }, backupId);
    const error = detail === undefined ? null : recordOfDetail(detail);
    const state = wordOf(jobStateValues, copy.state) ?? 'failed';
    const job = { id, state, holdsMachine: false, error };
    const code = exitCodeOfJob(job);
    this.copyCodes.push(code);
    const what = `${identity.name}, copy from ${from} to ${to}`;
    if (code !== 0) this.#parts.cli.terminal.record(errorRecord(new JobFailure(job)), what);
  }
}
