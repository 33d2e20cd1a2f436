import { decideHosts, type HostDecision } from '../../agent/hostPruning.ts';
import { listHostBackups } from '../../agent/storedHostBackups.ts';
import { type ErrorRecord, errorRecord } from '../../common/errors.ts';
import { StorageError } from '../../storage/errors.ts';
import { shortId, tellUnreachable } from '../backups.ts';
import type { Cli } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { combinedExitCode, type ExitCode, exitCodeOf } from '../exitCodes.ts';
import { type HostAgent, type HostSession, hostStorages, tell } from '../hostSession.ts';
import type { Options } from '../options.ts';
import { styled, tableLines, type Text } from '../output.ts';
import { changing, reading } from '../session.ts';

/** What became of what was to be removed; what is not in it stays. */
type Outcomes = ReadonlyMap<HostDecision, ErrorRecord | null>;

/** `stillpoint prune --host [HOST…]`: each host in each storage, by the rules of `hostBackups.keep`. */
export function pruneHosts(cli: Cli, hosts: readonly string[], options: Options): Promise<ExitCode> {
  if (options.flag('dryRun')) {
    return reading(cli, async ({ agent }) => {
      const { decisions, unreachable } = await decide(cli, agent, hosts, options);
      if (cli.terminal.json) printObjects(cli, decisions, new Map());
      else printDecisions(cli, decisions);
      return unreachable;
    });
  }
  return changing(cli, (session) => removeDecided(cli, session, hosts, options));
}

/** Removes what no rule keeps: one that cannot be removed hides no other, and a signal ends it between two. */
export async function removeDecided(
  cli: Cli,
  { agent, interruption }: HostSession,
  hosts: readonly string[],
  options: Options,
): Promise<ExitCode> {
  const { decisions, unreachable } = await decide(cli, agent, hosts, options);
  const going = decisions.filter(({ keep }) => !keep);
  const asks = going.length > 0 && !options.flag('yes');
  if (!cli.terminal.json || asks) printDecisions(cli, decisions);
  if (asks) await confirm(cli, options, interruption.signal);
  const outcomes = new Map<HostDecision, ErrorRecord | null>();
  for (const decision of going) {
    if (interruption.signal.aborted) break;
    outcomes.set(decision, await remove(cli, agent, decision));
  }
  if (cli.terminal.json) printObjects(cli, decisions, outcomes);
  else {
    const removed = [...outcomes.values()].filter((error) => error === null);
    cli.terminal.out(`removed ${removed.length} of ${decisions.length}`);
  }
  if (outcomes.size < going.length) {
    cli.terminal.remark('interrupted: the rest stays; repeat the command to go on');
    return 130;
  }
  const codes = [...outcomes.values()].map((error) => (error === null ? 0 : exitCodeOf(error.code)));
  return unreachable === 0 ? combinedExitCode(codes) : unreachable;
}

/** @throws ConfigError NO_STORAGE; AgentError STORAGE_NOT_CONFIGURED; StorageError BACKUP_NOT_FOUND for a host that no backup is of */
async function decide(
  cli: Cli,
  agent: HostAgent,
  hosts: readonly string[],
  options: Options,
): Promise<{ readonly decisions: readonly HostDecision[]; readonly unreachable: ExitCode }> {
  const { config, configPath } = agent.parts;
  const chosen = hostStorages(agent, options.texts('storage'));
  const storages = new Map(chosen.map((storage) => [storage.name, storage]));
  const unreachable = tellUnreachable(cli);
  const entries = await listHostBackups({ storages, configPath }, unreachable.tell);
  const unknown = hosts.find((name) => !entries.some(({ host }) => host === name));
  // It may be in a storage that could not be asked.
  if (unknown !== undefined && unreachable.code === 0)
    throw new StorageError('BACKUP_NOT_FOUND', `there is no backup of a host ${unknown}`, {
      hint: 'stillpoint list --host',
    });
  const asked = hosts.length === 0 ? entries : entries.filter(({ host }) => hosts.includes(host));
  return { decisions: decideHosts(config, asked), unreachable: unreachable.code };
}

async function remove(
  cli: Cli,
  agent: HostAgent,
  { backup: { entry } }: HostDecision,
): Promise<ErrorRecord | null> {
  try {
    await agent.storage(entry.storage).deleteHostBackup(entry);
    return null;
  } catch (error) {
    cli.terminal.error(error, `${entry.host} at ${entry.pointInTime} from ${entry.storage}`);
    return errorRecord(error);
  }
}

function printObjects(cli: Cli, decisions: readonly HostDecision[], outcomes: Outcomes): void {
  for (const decision of decisions) {
    const { backup, keep, reasons } = decision;
    const { id, pointInTime, entry } = backup;
    const { storage, directory, host } = entry;
    const error = outcomes.get(decision) ?? null;
    const removed = outcomes.has(decision) && error === null;
    cli.terminal.object({ id, host, pointInTime, storage, directory, keep, reasons, removed, error });
  }
}

function printDecisions(cli: Cli, decisions: readonly HostDecision[]): void {
  const columns = ['HOST', 'POINT IN TIME', 'STORAGE', 'ID', 'PRUNE', 'WHY'].map((title) => ({ title }));
  const rows = decisions.map(({ backup, keep, reasons }): readonly Text[] => [
    backup.entry.host,
    backup.pointInTime,
    backup.entry.storage,
    shortId(backup.id),
    keep ? styled('green', 'keep') : styled('yellow', 'remove'),
    keep ? reasons.join(', ') : 'no rule keeps it',
  ]);
  for (const line of tableLines(columns, rows)) tell(cli, ...line);
}
