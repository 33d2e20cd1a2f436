import { errorRecord } from '../../common/errors.ts';
import { protectionReasonLengthMax } from '../../storage/protection.ts';
import { backupJson, backupOfEntry, findBackup, tellUnreachable } from '../backups.ts';
import type { RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { combinedExitCode, type ExitCode, exitCodeOf } from '../exitCodes.ts';
import { styled } from '../output.ts';
import { changing } from '../session.ts';

/** `stillpoint protect BACKUP`: in every storage that holds it; with `--off` it may go again. */
export const protect: RunVerb = (cli, [reference = ''], options) => {
  const off = options.flag('off');
  const reason = options.text('reason') ?? null;
  if (off && reason !== null)
    throw new CliError('USAGE', '--reason says why it is protected; --off takes that off', protectHelp);
  if (reason !== null && (reason === '' || reason.length > protectionReasonLengthMax))
    throw new CliError('USAGE', `a reason has 1 to ${protectionReasonLengthMax} characters`, protectHelp);
  return changing(cli, async ({ agent }) => {
    const { terminal } = cli;
    const unreachable = tellUnreachable(cli);
    const backup = await backupOfEntry(
      agent,
      await findBackup(cli, agent.backups, reference),
      unreachable.tell,
    );
    const codes: ExitCode[] = [];
    for (const copy of backup.entries) {
      try {
        await agent.storage(copy.storage).setProtected(copy, off ? null : { reason });
        codes.push(0);
      } catch (error) {
        terminal.error(error, `storage ${copy.storage}`);
        codes.push(exitCodeOf(errorRecord(error).code));
        continue;
      }
      if (terminal.json) continue;
      terminal.out(
        styled('bold', `${copy.machine.name} at ${copy.pointInTime}`),
        ` in ${copy.storage}: ${off ? 'not protected any more' : 'protected'}`,
      );
    }
    const now = await backupOfEntry(
      agent,
      await agent.backups.find(backup.entry.id ?? reference),
      () => undefined,
    );
    if (terminal.json) terminal.object(backupJson(now));
    return combinedExitCode(unreachable.code === 0 ? codes : [...codes, unreachable.code]);
  });
};

const protectHelp = 'stillpoint protect --help';
