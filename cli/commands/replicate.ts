import { dirname } from 'node:path';
import { describeChoice } from '../../agent/storageStates.ts';
import { copyBackup, planReplication } from '../../agent/replication.ts';
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
    const { storage: target, choice } = await agent.chooseStorage(to, [from]);
    if (choice !== null) terminal.remark(describeChoice(choice));
    const storages = { from: agent.storage(from), to: target };
    const plan = await planReplication({ machines, ...storages, older: options.flag('older') });
    if (plan.length === 0) terminal.remark(`${to} has every backup that it should get from ${from}`);
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
      return 0;
    }
    const codes: ExitCode[] = [];
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
        const copy = await copyBackup(storages.from, storages.to, planned, {
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
