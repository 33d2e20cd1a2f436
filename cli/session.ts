import type { Agent } from '../agent/agent.ts';
import { openAgent } from '../agent/main.ts';
import type { JobRow } from '../agent/jobs/job.ts';
import { createLogger, type Logger } from '../common/log.ts';
import type { LoadedConfig } from '../config/config.ts';
import { loadHostConfig } from '../config/hostConfig.ts';
import type { Cli } from './cli.ts';
import type { ExitCode } from './exitCodes.ts';
import { followLimits } from './followLimits.ts';
import { JobFailure } from './jobFailure.ts';
import { PlainLog } from './plainLog.ts';
import { ProgressView } from './progress.ts';
import { Interruption } from './interruption.ts';

/** An agent that was opened to look, and the configuration it works by. */
export interface ReadSession {
  readonly agent: Agent;
  readonly loaded: LoadedConfig;
}

/** An agent that may change things, with what the operator sees and says meanwhile. */
export interface ChangeSession extends ReadSession {
  /** Jobs of dead agents that were brought to their end before the verb began. */
  readonly takenOver: readonly JobRow[];
  readonly view: ProgressView;
  readonly interruption: Interruption;
}

/**
 * Reads the configuration, and what a controller has pushed beside it; without files at the default place everything has
 * its default.
 */
export function readConfig(cli: Cli): Promise<LoadedConfig> {
  return loadHostConfig(cli.configPath, { optional: !cli.configIsNamed });
}

/** The log of a command: plain lines for people, what its verb tells anyway left out. */
export function commandLog(cli: Cli): Logger {
  return createLogger({
    level: cli.verbose ? 'info' : 'warn',
    destination: new PlainLog(cli.terminal, cli.verbose),
  });
}

/**
 * Runs a verb that changes nothing. When work of a dead agent or a parked job is found, it is told after the
 * verb's own output and the exit code becomes 9, unless the verb has a failure of its own to tell.
 */
export async function reading(
  cli: Cli,
  verb: (session: ReadSession) => Promise<ExitCode>,
): Promise<ExitCode> {
  const loaded = await readConfig(cli);
  const log = commandLog(cli);
  await using open = await openAgent({ loaded, configPath: cli.configPath, log, readOnly: true });
  const code = await verb({ agent: open.agent, loaded });
  const unfinished = warnUnfinished(cli, open.agent);
  return code === 0 && unfinished ? 9 : code;
}

/**
 * Runs a verb that changes something: jobs of dead agents are brought to their end first, a signal asks our jobs
 * to end in order, progress is shown.
 * @param beforeTakeOver what the verb must have said before jobs of dead agents go on
 */
export async function changing(
  cli: Cli,
  verb: (session: ChangeSession) => Promise<ExitCode>,
  beforeTakeOver: (agent: Agent) => void = () => undefined,
): Promise<ExitCode> {
  const loaded = await readConfig(cli);
  const view = new ProgressView(cli.terminal);
  const log = commandLog(cli);
  await using open = await openAgent({ loaded, configPath: cli.configPath, log, listener: view.listener() });
  using interruption = new Interruption(cli.terminal, open.agent.parts.journal);
  await using _limits = await followLimits(cli.terminal, loaded, cli.configPath, open);
  beforeTakeOver(open.agent);
  const takenOver = await takeOver(cli, open.agent, view);
  await open.agent.finishDeletions();
  try {
    return await verb({ agent: open.agent, loaded, view, interruption, takenOver });
  } finally {
    view.end();
  }
}

/** Brings jobs of dead agents to their end, and says so. */
export async function takeOver(cli: Cli, agent: Agent, view: ProgressView): Promise<readonly JobRow[]> {
  for (const job of agent.parts.journal.orphaned()) {
    view.name(job.id, job.machineName);
    cli.terminal.err(
      `the process of job ${job.id} (${job.kind} of ${job.machineName}, ${job.state}) died: bringing it to an end`,
    );
  }
  const rows = await agent.recoverOrphans();
  for (const row of rows) {
    view.done(row.id);
    cli.terminal.err(`job ${row.id} (${row.kind} of ${row.machineName}) has ended: ${row.state}`);
    if (row.error !== null && row.holdsMachine) cli.terminal.error(new JobFailure(row), row.machineName);
  }
  for (const job of agent.parts.engine.orphaned()) {
    cli.terminal.warning(
      `job ${job.id} (${job.kind} of ${job.machineName}) could not be taken over; look at the journal: stillpoint doctor`,
    );
  }
  return rows;
}

function warnUnfinished(cli: Cli, agent: Agent): boolean {
  const { journal } = agent.parts;
  const orphaned = journal.orphaned();
  for (const job of orphaned) {
    cli.terminal.warning(
      `the process of job ${job.id} (${job.kind} of ${job.machineName}, ${job.state}) died in the middle; type: stillpoint agent --once`,
    );
  }
  const parked = journal.holding().filter(({ owner }) => owner === null);
  for (const job of parked) {
    cli.terminal.warning(
      `job ${job.id} (${job.kind} of ${job.machineName}) was left with work to do: ${job.error?.message ?? job.state}; type: stillpoint job show ${job.id}; then stillpoint job retry ${job.id}, or stillpoint job cancel ${job.id}`,
    );
  }
  return orphaned.length + parked.length > 0;
}
