import type { Options } from './options.ts';
import type { ExitCode } from './exitCodes.ts';
import type { Terminal } from './terminal.ts';

/** What every verb is given. */
export interface Cli {
  readonly terminal: Terminal;
  readonly configPath: string;
  /** The operator named the configuration: that it is missing is an error then. */
  readonly configIsNamed: boolean;
  /** What the program does is told on stderr, also where all is well. */
  readonly verbose: boolean;
  /** The work is done in this process, also where the service of the host runs. */
  readonly standalone?: boolean | undefined;
}

/** A verb at work. Errors are thrown and printed by the entry. */
export type RunVerb = (cli: Cli, args: readonly string[], options: Options) => Promise<ExitCode>;
