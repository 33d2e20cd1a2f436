import type { Agent } from '../../agent/agent.ts';
import { StillpointError } from '../../common/errors.ts';
import type { BackupEntry, VerifyOptions, VerifyReport } from '../../storage/storage.ts';
import { formatBytes } from '../../common/units.ts';
import type { OnUnreachable } from '../../agent/storedBackups.ts';
import { backupOfEntry, findBackup, tellUnreachable } from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { styled } from '../output.ts';
import { reading } from '../session.ts';
import { verifyByStarting } from './verifyBoot.ts';

/** `stillpoint verify BACKUP… | --all`: every copy in every storage. */
export const verify: RunVerb = (cli, references, options) => {
  if (options.flag('boot')) return verifyByStarting(cli, references, options);
  options.allowOnly(
    ['all', 'data'],
    'verify without --boot',
    'stillpoint verify BACKUP --boot --expect login:',
  );
  const all = options.flag('all');
  if ((references.length === 0) === !all) {
    throw new CliError(
      'USAGE',
      all ? 'name backups, or use --all, not both' : 'no backup is named',
      'stillpoint verify BACKUP, or stillpoint verify --all',
    );
  }
  const data = options.flag('data');
  return reading(cli, async ({ agent }) => {
    const unreachable = tellUnreachable(cli);
    const entries = all
      ? await agent.backups.list(undefined, unreachable.tell)
      : await copiesOf(cli, agent, references, unreachable.tell);
    if (entries.length === 0 && unreachable.code === 0) cli.terminal.remark('there are no backups');
    let damaged = 0;
    const compared = new Map<string, Set<string>>();
    for (const entry of entries) {
      try {
        const known = compared.get(entry.storage) ?? new Set<string>();
        compared.set(entry.storage, known);
        const report = await verifyCopy(cli, agent, entry, { data, compared: known });
        if (!report.ok) damaged += 1;
      } catch (error) {
        if (!(error instanceof StillpointError)) throw error;
        unreachable.tell(entry.storage, error);
      }
    }
    if (damaged > 0) cli.terminal.remark(`${damaged} of ${entries.length} are damaged`);
    return damaged > 0 ? 5 : unreachable.code;
  });
};

async function copiesOf(
  cli: Cli,
  agent: Agent,
  references: readonly string[],
  onUnreachable: OnUnreachable,
): Promise<readonly BackupEntry[]> {
  const entries = new Map<string, BackupEntry>();
  for (const reference of references) {
    const backup = await backupOfEntry(agent, await findBackup(cli, agent.backups, reference), onUnreachable);
    for (const entry of backup.entries) entries.set(`${entry.storage}:${entry.directory}`, entry);
  }
  return [...entries.values()];
}

async function verifyCopy(
  cli: Cli,
  agent: Agent,
  entry: BackupEntry,
  { data, compared }: Pick<VerifyOptions, 'data' | 'compared'>,
): Promise<VerifyReport> {
  const { terminal } = cli;
  const report = await agent.storage(entry.storage).verify(entry, {
    data,
    compared,
    onProgress: ({ bytesDone, bytesTotal }) => {
      terminal.live([
        [
          styled('bold', entry.machine.name),
          `  reading ${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}`,
        ],
      ]);
    },
  });
  terminal.live([]);
  if (terminal.json) {
    const { machine, pointInTime, storage, directory } = entry;
    terminal.object({ ...report, machine, pointInTime, storage, directory });
    return report;
  }
  const verdict = report.ok
    ? styled('green', data ? 'every byte is as stored' : 'complete; contents not read (--data)')
    : styled('red', 'damaged');
  terminal.out(
    styled('bold', `${entry.machine.name} ${entry.pointInTime}`),
    ` in ${entry.storage}: `,
    verdict,
  );
  for (const { file, verdict: found, detail } of report.files) {
    terminal.out(
      '  ',
      found === 'ok' ? styled('green', found.padEnd(10)) : styled('red', found.padEnd(10)),
      ` ${file}${detail === null ? '' : `: ${detail}`}`,
    );
  }
  return report;
}
