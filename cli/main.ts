import { defaultConfigPath } from './defaults.ts';
import type { Cli } from './cli.ts';
import { asTold, CliError } from './errors.ts';
import { exitCodeOf, type ExitCode } from './exitCodes.ts';
import type { Options } from './options.ts';
import { parseCommandLine } from './program.ts';
import { outliveReaders, Terminal } from './terminal.ts';
import { endProcess, outputGone } from '../common/endProcess.ts';
import { errorRecord } from '../common/errors.ts';

/** The terminal of this process. */
function terminalFor(json: boolean, quiet: boolean, color: boolean): Terminal {
  const { stdout, stderr, stdin, env } = process;
  const wanted = color && (env['NO_COLOR'] ?? '') === '' && env['TERM'] !== 'dumb';
  return new Terminal({ stdout, stderr, stdin, json, quiet, color: wanted });
}

function cliFor(globals: Options, terminal: Terminal): Cli {
  const { STILLPOINT_CONFIG: fromEnvironment = '' } = process.env;
  const named = globals.text('config') ?? (fromEnvironment === '' ? undefined : fromEnvironment);
  return {
    terminal,
    configPath: named ?? defaultConfigPath,
    configIsNamed: named !== undefined,
    verbose: globals.flag('verbose'),
    standalone: globals.flag('standalone'),
  };
}

/** One call of the program: the only place that prints errors and decides the exit code of one. */
async function main(argv: readonly string[]): Promise<ExitCode> {
  // A mistake in the command itself is told in the form that it asked for.
  let terminal = terminalFor(argv.includes('--json'), false, !argv.includes('--no-color'));
  try {
    const parsed = await parseCommandLine(argv, (text) => process.stdout.write(text));
    if (parsed.kind === 'told') return 0;
    const { run, args, options, globals } = parsed.invocation;
    terminal = terminalFor(globals.flag('json'), globals.flag('quiet'), globals.flag('color'));
    return await run(cliFor(globals, terminal), args, options);
  } catch (thrown) {
    const error = asTold(thrown);
    terminal.live([]);
    terminal.error(error);
    return exitCodeOf(errorRecord(error).code);
  }
}

const lostOutput = outliveReaders([process.stdout, process.stderr]);
const code = await main(process.argv.slice(2));
// A slow reader gets everything; errors of the streams arrive after the writes.
await outputGone();
const lost = lostOutput();
if (lost !== undefined) {
  const message = `what was to be told could not be written: ${lost.message}`;
  terminalFor(false, false, false).error(
    new CliError('OUTPUT_FAILED', message, 'the work was done all the same: stillpoint jobs'),
  );
}
// Whatever handle is still open: the command has done what it was asked for.
endProcess(lost !== undefined && code === 0 ? 1 : code);
