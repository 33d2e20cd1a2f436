import type { Agent } from '../../agent/agent.ts';
import { bootFactsSchema } from '../../agent/restore/bootPlan.ts';
import { formatDuration } from '../../common/time.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { findBackup } from '../backups.ts';
import type { Cli } from '../cli.ts';
import { CliError } from '../errors.ts';
import { type ExitCode, exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import type { Options } from '../options.ts';
import { styled } from '../output.ts';
import { type ChangeSession, changing } from '../session.ts';

const defaultSeconds = 300;

/** `stillpoint verify BACKUP… --boot`: each is started, one after the other, and taken away again. */
export async function verifyByStarting(
  cli: Cli,
  references: readonly string[],
  options: Options,
): Promise<ExitCode> {
  const deadlineMs = secondsOf(options) * 1000;
  if (references.length === 0 || options.flag('all'))
    throw new CliError('USAGE', 'no backup is named', 'stillpoint verify BACKUP --boot');
  const [storage, ...others] = options.texts('storage') ?? [];
  if (others.length > 0)
    throw new CliError('USAGE', 'one copy is started: name one storage', 'stillpoint verify --help');
  return changing(cli, async (session) => {
    let worst: ExitCode = 0;
    for (const reference of references) {
      await findBackup(cli, session.agent.backups, reference);
      const entry = await session.agent.findBackup(reference, storage);
      const code = await startOne(cli, session, entry, options, deadlineMs);
      if (code !== 0) worst = code;
    }
    return worst;
  });
}

function secondsOf(options: Options): number {
  const text = options.text('timeout');
  if (text === undefined) return defaultSeconds;
  const seconds = Number(text);
  if (Number.isInteger(seconds) && seconds > 0) return seconds;
  throw new CliError('USAGE', `"${text}" is not a number of seconds`, '--timeout 300');
}

async function startOne(
  cli: Cli,
  { agent, view, interruption }: ChangeSession,
  entry: BackupEntry,
  options: Options,
  deadlineMs: number,
): Promise<ExitCode> {
  const start = options.text('start');
  const plan = await agent.planBoot(entry, {
    start: start === 'resume' || start === 'boot' ? start : undefined,
    expect: options.text('expect'),
    deadlineMs,
  });
  const created = agent.createBoot(plan);
  view.name(created.id, entry.machine.name);
  if (interruption.signal.aborted) agent.parts.journal.requestCancel(created.id);
  const job = await agent.run(created);
  view.end();
  const code = exitCodeOfJob(job);
  if (code !== 0) {
    cli.terminal.error(new JobFailure(job), entry.machine.name);
    return code;
  }
  const { result } = bootFactsSchema.parse(job.record);
  return tell(cli, agent, entry, result?.ok ?? false);
}

/** What is stored beside the backup is what is told. */
async function tell(cli: Cli, agent: Agent, entry: BackupEntry, ok: boolean): Promise<ExitCode> {
  const stored = await agent.storage(entry.storage).find(entry.id ?? '');
  const { verified = null } = stored;
  if (cli.terminal.json) {
    const { id, machine, pointInTime, storage, directory } = stored;
    cli.terminal.object({ id, ok, machine, pointInTime, storage, directory, verified });
  } else if (verified !== null) {
    const verdict = ok ? styled('green', 'it works') : styled('red', 'it does not work');
    const how = verified.start === 'resume' ? 'resumed' : 'booted';
    cli.terminal.out(
      styled('bold', `${entry.machine.name} ${entry.pointInTime}`),
      ` in ${entry.storage}, ${how}: `,
      verdict,
      ` (${verified.detail}; ${formatDuration(verified.durationMs)})`,
    );
    if (verified.picture !== null) cli.terminal.out(`  picture: ${entry.directory}/${verified.picture}`);
  }
  return ok ? 0 : 5;
}
