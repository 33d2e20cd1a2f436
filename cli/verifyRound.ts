import type { Agent } from '../agent/agent.ts';
import type { OnUnreachable } from '../agent/storedBackups.ts';
import { StillpointError } from '../common/errors.ts';
import { formatDuration } from '../common/time.ts';
import { formatBytes } from '../common/units.ts';
import type { BackupEntry, VerifyOptions, VerifyReport } from '../storage/storage.ts';
import type { Cli } from './cli.ts';
import { parseDuration } from './duration.ts';
import { CliError } from './errors.ts';
import type { Options } from './options.ts';
import { styled } from './output.ts';

/** A timer of Node's takes no longer. */
const timerMsMax = 2 ** 31 - 1;

/** A part of what there is to read, for which there is not always the time. */
export interface Round {
  readonly olderThanMs: number;
  /** Aborts when the time is over. */
  readonly signal: AbortSignal | undefined;
}

/** The round that was asked for; `null` for all of it. @throws CliError USAGE */
export function roundOf(options: Options, isAllData: boolean): Round | null {
  const olderThan = options.text('olderThan');
  const budget = options.text('budget');
  if (olderThan === undefined && budget === undefined) return null;
  const hint = 'stillpoint verify --all --data --older-than 30d --budget 2h';
  if (!isAllData) throw new CliError('USAGE', '--older-than and --budget go with --all --data', hint);
  const budgetMs = budget === undefined ? null : parseDuration(budget, '--budget', hint);
  if (budgetMs !== null && budgetMs > timerMsMax)
    throw new CliError('USAGE', '--budget is at most 24d', hint);
  return {
    olderThanMs: olderThan === undefined ? 0 : parseDuration(olderThan, '--older-than', hint),
    signal: budgetMs === null ? undefined : AbortSignal.timeout(budgetMs),
  };
}

/** How far a round came. */
export interface Verified {
  readonly verified: number;
  readonly damaged: number;
  /** Those that there was no time for. */
  readonly left: readonly BackupEntry[];
  /** The first of these was begun. Nothing is written down about it. */
  readonly isInterrupted: boolean;
}

/** Verifies copies one after the other, until there is no more time. Each is written down when all of it was read. */
export async function verifyCopies(
  cli: Cli,
  agent: Pick<Agent, 'storage'>,
  entries: readonly BackupEntry[],
  { data, signal }: Pick<VerifyOptions, 'data' | 'signal'>,
  onUnreachable: OnUnreachable,
): Promise<Verified> {
  let verified = 0;
  let damaged = 0;
  const isOver = (): boolean => signal?.aborted === true;
  const compared = new Map<string, Set<string>>();
  const unread = new Set<string>();
  for (const [place, entry] of entries.entries()) {
    const left = entries.slice(place);
    if (isOver()) return { verified, damaged, left, isInterrupted: false };
    if (unread.has(entry.storage)) continue;
    try {
      const known = compared.get(entry.storage) ?? new Set<string>();
      compared.set(entry.storage, known);
      const report = await verifyCopy(cli, agent, entry, { data, compared: known, signal });
      verified += 1;
      if (!report.ok) damaged += 1;
    } catch (error) {
      if (isOver()) {
        cli.terminal.live([]);
        return { verified, damaged, left, isInterrupted: true };
      }
      if (!(error instanceof StillpointError)) throw error;
      onUnreachable(entry.storage, error);
      // So it is for each of its backups, and telling it once is enough.
      if (error.code === 'KEY_WRITE_ONLY') unread.add(entry.storage);
    }
  }
  return { verified, damaged, left: [], isInterrupted: false };
}

/** What there was no time for, and how long ago the oldest of it was read. */
export function tellLeft(cli: Cli, { verified, left, isInterrupted }: Verified): void {
  const [oldest] = left;
  const neverRead = left.filter(({ dataVerified }) => dataVerified == null).length;
  const oldestReadAt = oldest?.dataVerified?.at ?? null;
  if (cli.terminal.json) {
    const interrupted = isInterrupted ? (oldest?.directory ?? null) : null;
    cli.terminal.object({ verified, left: left.length, neverRead, oldestReadAt, interrupted });
    return;
  }
  if (oldest === undefined) {
    cli.terminal.remark(`${verified} were read; nothing is left`);
    return;
  }
  if (isInterrupted)
    cli.terminal.remark(
      `the time was over while ${oldest.machine.name} ${oldest.pointInTime} in ${oldest.storage} was read; the next run begins with it${verified === 0 ? ', and needs a larger --budget' : ''}`,
    );
  const age =
    oldestReadAt === null
      ? `the oldest, of ${oldest.pointInTime}, never was`
      : `the oldest was read ${formatDuration(Date.now() - Date.parse(oldestReadAt))} ago`;
  cli.terminal.remark(
    `${verified} were read; ${left.length} are left, ${neverRead} of them never read; ${age}`,
  );
}

async function verifyCopy(
  cli: Cli,
  agent: Pick<Agent, 'storage'>,
  entry: BackupEntry,
  { data, compared, signal }: Pick<VerifyOptions, 'data' | 'compared' | 'signal'>,
): Promise<VerifyReport> {
  const { terminal } = cli;
  const report = await agent.storage(entry.storage).verify(entry, {
    data,
    compared,
    signal,
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
  if (data) await record(cli, agent, entry, report);
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

/** Writes down that a copy was read; where that cannot be done, it is read again sooner than needed. */
async function record(
  cli: Cli,
  agent: Pick<Agent, 'storage'>,
  entry: BackupEntry,
  { ok }: VerifyReport,
): Promise<void> {
  try {
    await agent.storage(entry.storage).addDataVerification(entry, { at: new Date().toISOString(), ok });
  } catch (error) {
    if (!(error instanceof StillpointError)) throw error;
    cli.terminal.warning(
      `${entry.machine.name} ${entry.pointInTime}: that it was read is not written down: ${error.message}`,
    );
  }
}
