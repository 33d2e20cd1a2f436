import type { Cli } from './cli.ts';
import { CliError } from './errors.ts';
import type { Options } from './options.ts';

/**
 * Lets the operator decide about what was just shown; `--yes` has decided already.
 * @throws CliError NOT_CONFIRMED when he does not say yes, or nobody is there to be asked
 */
export async function confirm(cli: Cli, options: Options, signal?: AbortSignal): Promise<void> {
  if (options.flag('yes')) return;
  if (!cli.terminal.isInteractive) {
    throw new CliError(
      'NOT_CONFIRMED',
      'nothing was done: there is no terminal to ask on',
      'read the plan above, then repeat the command with --yes',
    );
  }
  const answer = await cli.terminal.ask('Type yes to go on:', signal === undefined ? {} : { signal });
  if (signal?.aborted === true)
    throw new CliError('INTERRUPTED', 'nothing was done: the command was interrupted');
  if (answer !== 'yes') throw new CliError('NOT_CONFIRMED', 'nothing was done');
}
