import type { BackupEntry } from '../../storage/storage.ts';
import type { OnUnreachable } from '../../agent/storedBackups.ts';
import { dueForReading } from '../../agent/verifyOrder.ts';
import { backupOfEntry, findBackup, noCopyIn, tellUnreachable } from '../backups.ts';
import type { RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { reading } from '../session.ts';
import { roundOf, tellLeft, verifyCopies } from '../verifyRound.ts';
import { verifyByStarting } from './verifyBoot.ts';

/** `stillpoint verify BACKUP… | --all`: every copy in every storage, or in some. */
export const verify: RunVerb = (cli, references, options) => {
  if (options.flag('boot')) return verifyByStarting(cli, references, options);
  options.allowOnly(
    ['all', 'data', 'olderThan', 'budget', 'storage'],
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
  const round = roundOf(options, all && data);
  return reading(cli, async ({ agent }) => {
    const unreachable = tellUnreachable(cli);
    const only = options
      .texts('storage')
      ?.flatMap((name) => agent.storagesOf(name).map((storage) => storage.name));
    const isMeant = (storage: string): boolean => only?.includes(storage) ?? true;
    const tell: OnUnreachable = (storage, error) => {
      if (isMeant(storage)) unreachable.tell(storage, error);
    };
    const listed: BackupEntry[] = [];
    if (all)
      listed.push(...(await agent.backups.list(undefined, tell)).filter(({ storage }) => isMeant(storage)));
    for (const reference of new Set(references)) {
      const found = await findBackup(cli, agent.backups, reference);
      const copies = (await backupOfEntry(agent, found, tell)).entries.filter(({ storage }) =>
        isMeant(storage),
      );
      // What was not verified must not look as if it were.
      if (copies.length === 0 && unreachable.code === 0) throw noCopyIn(reference, only ?? []);
      listed.push(...copies.filter((copy) => !listed.some((other) => isSame(copy, other))));
    }
    const entries =
      all && data ? dueForReading(listed, { now: new Date(), olderThanMs: round?.olderThanMs ?? 0 }) : listed;
    if (listed.length === 0 && unreachable.code === 0) cli.terminal.remark('there are no backups');
    const done = await verifyCopies(cli, agent, entries, { data, signal: round?.signal }, tell);
    if (round !== null) tellLeft(cli, done);
    if (done.damaged > 0) cli.terminal.remark(`${done.damaged} of ${entries.length} are damaged`);
    return done.damaged > 0 ? 5 : unreachable.code;
  });
};

/** Two references may mean one backup. */
function isSame(one: BackupEntry, other: BackupEntry): boolean {
  return one.storage === other.storage && one.directory === other.directory;
}
