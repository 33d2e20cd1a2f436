import type { LockReport } from '../../agent/repositoryLock.ts';
import type { RepositoryReport } from '../../storage/repository/verifyRepository.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { type ExitCode, exitCodeOf } from '../exitCodes.ts';
import { styled } from '../output.ts';
import { changing, type ChangeSession } from '../session.ts';
import { storageRepair } from './storageRepair.ts';

/** `stillpoint storage check NAME`. */
export const storageCheck: RunVerb = (cli, arguments_, options) => {
  if (options.flag('repair')) return storageRepair(cli, arguments_, options);
  options.allowOnly(
    ['data', 'rebuildIndex'],
    'storage check without --repair',
    'stillpoint storage check --help',
  );
  return check(cli, arguments_, options);
};

const check: RunVerb = (cli, [name = ''], options) =>
  changing(cli, async (session) => {
    const { agent, interruption } = session;
    const { terminal } = cli;
    const { signal } = interruption;
    const locks = await checkLocks(cli, name, session);
    const rebuilt = await agent.repositories.rebuildIndex(name, { dryRun: !options.flag('rebuildIndex') });
    const report = await agent.repositories.verify(name, { data: options.flag('data'), signal });
    const packs = report.damagedPacks.map(({ id, reason }) => ({ id: id.toString('hex'), reason }));
    const ok = report.ok && locks.isInOrder;
    const code = ok ? locks.code : 5;
    if (terminal.json) {
      const backups = report.backups.map(({ id, problems }) => ({ id, problems }));
      const { objectLock } = locks;
      terminal.object({
        storage: name,
        ...report,
        ok,
        backups,
        damagedPacks: packs,
        index: rebuilt,
        objectLock,
      });
      return code;
    }
    for (const { name: object, reason } of rebuilt.problems) terminal.warning(`${object}: ${reason}`);
    if (rebuilt.packsAdded > 0)
      terminal.remark(
        options.flag('rebuildIndex')
          ? `${rebuilt.packsAdded} packs that no index named are named now`
          : `no index names ${rebuilt.packsAdded} packs: stillpoint storage check ${name} --rebuild-index`,
      );
    for (const { id, reason } of packs) terminal.warning(`pack ${id}: ${reason}`);
    printVerdict(cli, report, ok);
    return code;
  });

function printVerdict({ terminal }: Cli, report: RepositoryReport, ok: boolean): void {
  for (const { id, problems } of report.backups)
    for (const problem of problems) terminal.warning(`backup ${id}: ${problem}`);
  const bad = report.backups.filter(({ problems }) => problems.length > 0).length;
  terminal.out(
    ok ? styled('green', 'ok') : styled('red', 'damaged'),
    ` ${report.backups.length} backups, ${bad} damaged${report.data ? '' : ' (structure only; --data reads every byte)'}`,
  );
}

/** What came of looking at the object lock. */
interface CheckedLocks {
  /** `null`: the configuration wants none. */
  readonly objectLock: (LockReport & { readonly displaced: readonly object[] }) | null;
  /** Nobody has deleted or overwritten what is locked. */
  readonly isInOrder: boolean;
  /** Of a store that does not lock what it is to lock. */
  readonly code: ExitCode;
}

/** Before anything else: what is hidden may be what the repository is opened by. */
async function checkLocks(
  { terminal }: Cli,
  name: string,
  { agent, interruption }: ChangeSession,
): Promise<CheckedLocks> {
  const { signal } = interruption;
  const displaced = await agent.repositories.displaced(name, { signal });
  const repair = `stillpoint storage check ${name} --repair`;
  for (const { name: object, how } of displaced)
    terminal.warning(`${object} is locked, and somebody has ${how} it: ${repair}`);
  const lock = await agent.repositories.lock(name, { signal });
  if (lock === null) return { objectLock: null, isInOrder: displaced.length === 0, code: 0 };
  for (const { backupId, lockedUntil } of lock.deletions)
    terminal.warning(
      `backup ${backupId} is locked until ${lockedUntil.toISOString()}, and somebody has deleted it: ${repair}`,
    );
  const { problem } = lock;
  if (problem !== null) terminal.record(problem, `storage ${name}`);
  const isInOrder = displaced.length === 0 && lock.deletions.length === 0;
  const code = problem === null ? 0 : exitCodeOf(problem.code);
  return { objectLock: { ...lock, displaced }, isInOrder, code };
}
