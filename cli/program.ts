import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { version } from '../common/version.ts';
import type { RunVerb } from './cli.ts';
import { CliError } from './errors.ts';
import { exitMeanings } from './exitCodes.ts';
import { Options } from './options.ts';
import { globalOptions, laterWords, type Verb, type VerbOption, verbs } from './verbs.ts';

/** What was typed, understood. */
export interface Invocation {
  readonly verb: Verb;
  readonly run: RunVerb;
  readonly args: readonly string[];
  readonly options: Options;
  readonly globals: Options;
}

/** Help or the version was asked for; it has been printed. */
export type Parsed = { readonly kind: 'verb'; readonly invocation: Invocation } | { readonly kind: 'told' };

/**
 * Understands a command line (without the program's own name).
 * @param write where help and version go
 * @throws CliError USAGE, NOT_AVAILABLE
 */
export async function parseCommandLine(
  argv: readonly string[],
  write: (text: string) => void,
): Promise<Parsed> {
  let invocation: Invocation | undefined;
  const program = buildProgram(write, async (verb, args, options, globals) => {
    invocation = { verb, run: await verb.load(), args, options, globals };
  });
  try {
    await program.parseAsync([...argv], { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { kind: 'told' };
    throw usageError(error, argv);
  }
  return invocation === undefined ? { kind: 'told' } : { kind: 'verb', invocation };
}

function usageError(error: CommanderError, argv: readonly string[]): CliError {
  const later = argv.map((word) => word.split('=')[0] ?? '').find((word) => laterWords.has(word));
  const isUnknown = error.code === 'commander.unknownCommand' || error.code === 'commander.unknownOption';
  if (isUnknown && later !== undefined) {
    return new CliError('NOT_AVAILABLE', `${later} is not in this version`, 'stillpoint --help');
  }
  const verb = verbs.find(({ name }) => argv.join(' ').startsWith(name));
  const named = verb?.name ?? argv.find((word) => Object.hasOwn(groupSummaries, word));
  const message =
    error.code === 'commander.help' ? 'a command is missing' : error.message.replace(/^error: /, '');
  return new CliError(
    'USAGE',
    message,
    ['stillpoint', ...(named === undefined ? [] : [named]), '--help'].join(' '),
  );
}

type OnVerb = (verb: Verb, args: readonly string[], options: Options, globals: Options) => Promise<void>;

function buildProgram(write: (text: string) => void, onVerb: OnVerb): Command {
  const program = new Command('stillpoint')
    .description(
      'Backs up running KVM machines at one still point in time, and brings them back to exactly that instant.',
    )
    .version(version, '--version', 'print the version')
    .configureHelp({ showGlobalOptions: true })
    .addHelpText('after', exitCodeHelp());
  configure(program, write);
  for (const option of globalOptions) program.addOption(buildOption(option));
  for (const verb of verbs) addVerb(program, verb, write, onVerb);
  return program;
}

/** commander ends the process and writes on its own unless every command is told not to. */
function configure(command: Command, write: (text: string) => void): void {
  command
    .exitOverride()
    .configureOutput({ writeOut: write, writeErr: () => undefined, getOutHelpWidth: () => 100 });
}

function addVerb(program: Command, verb: Verb, write: (text: string) => void, onVerb: OnVerb): void {
  const words = verb.name.split(' ');
  const own = words.at(-1) ?? verb.name;
  const group = words.length > 1 ? groupOf(program, words[0] ?? '', write) : program;
  const command = group
    .command(verb.arguments === '' ? own : `${own} ${verb.arguments}`)
    .description(verb.summary);
  configure(command, write);
  // `controller token --ca D`: what comes after a verb of a verb is that one's.
  command.enablePositionalOptions();
  command.configureHelp({ showGlobalOptions: true });
  for (const option of verb.options) command.addOption(buildOption(option));
  command.addHelpText(
    'after',
    `\nExamples:\n${verb.examples.map((example) => `  stillpoint ${example}`).join('\n')}`,
  );
  command.action(async () => {
    const values = command.opts();
    const typed = Object.keys(values).filter((name) => command.getOptionValueSource(name) === 'cli');
    await onVerb(verb, command.args, new Options(values, typed), new Options(program.opts()));
  });
}

function groupOf(program: Command, name: string, write: (text: string) => void): Command {
  const existing = program.commands.find((command) => command.name() === name);
  if (existing !== undefined) return existing;
  const group = program.command(name).description(groupSummaries[name] ?? name);
  configure(group, write);
  return group;
}

const groupSummaries: Readonly<Record<string, string>> = {
  job: 'one job: show, watch, pause, resume, cancel, retry',
  storage: 'the storages: list, init, import, show, gc, check, keys, mount, unmount',
};

function buildOption({ flags, description, choices, laterChoices, many }: VerbOption): Option {
  const option = new Option(
    flags,
    choices === undefined ? description : `${description} (${choices.join(', ')})`,
  );
  if (choices !== undefined) {
    option.argParser((value: string) => {
      if (choices.includes(value)) return value;
      if (laterChoices?.includes(value) === true) {
        throw new CliError(
          'NOT_AVAILABLE',
          `${option.long} ${value} is not in this version`,
          `choose one of ${choices.join(', ')}`,
        );
      }
      throw new InvalidArgumentError(`Allowed are ${choices.join(', ')}.`);
    });
  }
  // Not variadic: `--storage vault web-1` would take the machine for a second storage.
  if (many === true)
    option.argParser((value: string, before: readonly string[] | undefined) => [...(before ?? []), value]);
  return option;
}

function exitCodeHelp(): string {
  const lines = Object.entries(exitMeanings).map(([code, meaning]) => `  ${code.padStart(3)}  ${meaning}`);
  return `\nBACKUP is an id (or the first 8 characters of one), MACHINE@latest, or MACHINE@T1.\n\nExit codes:\n${lines.join('\n')}`;
}
