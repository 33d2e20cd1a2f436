import { dirname } from 'node:path';
import { describeChoice } from '../../agent/storageStates.ts';
import { copyBackup } from '../../agent/replication.ts';
import { planWished } from '../../agent/wishedCopies.ts';
import { errorRecord } from '../../common/errors.ts';
import { formatBytes } from '../../common/units.ts';
import { shortId, storedBytes } from '../backups.ts';
import type { RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { combinedExitCode, type ExitCode, exitCodeOf } from '../exitCodes.ts';
import { styled } from '../output.ts';
import { changing } from '../session.ts';

/** `stillpoint replicate [MACHINE…] --from NAME --to NAME`: oldest first; one that fails hides no other. */
export const replicate: RunVerb = (cli, machines, options) => {
  const [from, to] = [options.text('from'), options.text('to')];
  if (from === undefined || to === undefined || from === to)
    throw new CliError('USAGE', 'give two storages: --from NAME --to NAME', 'stillpoint storage list');
  return changing(cli, async ({ agent, interruption }) => {
    const { terminal } = cli;
    const sources = agent.storagesOf(from);
    const names = sources.map(({ name }) => name);
    const { storage: target, choice } = await agent.chooseStorage(to, names);
    if (names.includes(target.name))
      throw new CliError('USAGE', `${target.name} is what is copied from`, 'stillpoint storage list');
    if (choice !== null) terminal.remark(describeChoice(choice));
    const wished = { machines, sources, to: target, older: options.flag('older') };
    const { copies: plan, leftOut, unread } = await planWished(wished);
    for (const { storage, error } of unread) terminal.error(error, storage);
    const remark = leftOutRemark({ machines, from, to, copies: plan.length, leftOut });
    if (remark !== null && (unread.length === 0 || leftOut > 0)) terminal.remark(remark);
    if (options.flag('dryRun')) {
      for (const { entry } of plan) {
        const { id, machine, pointInTime } = entry;
        if (terminal.json) terminal.object({ id, machine, pointInTime, state: 'planned' });
        else
          terminal.out(
            'would copy ',
            styled('bold', machine.name),
            ` at ${pointInTime}, id ${shortId(id ?? '')}`,
          );
      }
      return combinedExitCode([0, ...unread.map(({ error }) => exitCodeOf(error.code))]);
    }
    const codes: ExitCode[] = unread.map(({ error }) => exitCodeOf(error.code));
    const runDirectory = dirname(agent.parts.config.agent.socket);
    for (const [index, planned] of plan.entries()) {
      const { signal } = interruption;
      if (signal.aborted) break;
      const { id, machine, pointInTime } = planned.entry;
      try {
        const onProgress = (what: string, doneBytes: number): void =>
          terminal.live([
            [`${index + 1}/${plan.length} ${machine.name} ${pointInTime}: ${what} ${formatBytes(doneBytes)}`],
          ]);
        const copy = await copyBackup(planned.from, target, planned, {
          signal,
          runDirectory,
          onProgress,
          onLeftOpen: (error) =>
            terminal.warning(
              `the copy is left open, and storage gc waits for it: ${errorRecord(error).message}`,
            ),
        });
        terminal.live([]);
        codes.push(0);
        const size = formatBytes(storedBytes(copy) ?? 0);
        if (terminal.json)
          terminal.object({ id, machine, pointInTime, state: 'copied', directory: copy.directory });
        else
          terminal.out(
            styled('green', 'copied '),
            styled('bold', machine.name),
            ` at ${pointInTime}, ${size}, id ${shortId(id ?? '')}: ${copy.directory}`,
          );
      } catch (error) {
        terminal.live([]);
        if (signal.aborted) break;
        terminal.error(error, `${machine.name} ${pointInTime}`);
        codes.push(exitCodeOf(errorRecord(error).code));
      }
    }
    if (interruption.signal.aborted) {
      terminal.remark(
        'interrupted: repeat the command to go on; what has arrived in a repository is not sent again',
      );
      return 130;
    }
    return combinedExitCode(codes);
  });
};

/** What there is to say of backups that are not copied; null where nothing is. */
export function leftOutRemark({
  machines,
  from,
  to,
  copies,
  leftOut,
}: {
  readonly machines: readonly string[];
  readonly from: string;
  readonly to: string;
  readonly copies: number;
  readonly leftOut: number;
}): string | null {
  if (leftOut === 0) return copies === 0 ? `${to} has every backup that it should get from ${from}` : null;
  const [what, they] = leftOut === 1 ? ['1 backup', 'it is'] : [`${leftOut} backups`, 'they are'];
  const command = ['stillpoint replicate', ...machines, `--from ${from} --to ${to} --older`].join(' ');
  return `${what} of ${from} ${leftOut === 1 ? 'is' : 'are'} not in ${to} and not copied, because ${they} older than the newest one there: pruned there, or never copied. To copy ${leftOut === 1 ? 'it' : 'them'}: ${command}`;
}
