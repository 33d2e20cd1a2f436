import type { MachineStatus, MachineSummary } from '../agent/hypervisor/hypervisor.ts';
import { matchesName, policyFor } from '../config/policy.ts';
import type { Config } from '../config/schema.ts';
import { CliError } from './errors.ts';

export interface Choice {
  /** Names, UUIDs, and patterns in which `*` and `?` stand for any characters. */
  readonly typed: readonly string[];
  /** Every machine that runs and every template, instead of typed ones. */
  readonly all: boolean;
  /** Names and patterns of machines that are left out, however they were chosen. */
  readonly exclude: readonly string[];
}

/**
 * The machines and templates that a command is about, each once: what was typed in its order, a pattern's and `--all`'s by name.
 * What is named by itself is taken as it is, whatever the configuration says; patterns and `--all` leave out what it
 * excludes.
 * @throws CliError USAGE when a pattern or everything together means no machine; ConfigError NO_STORAGE
 */
export function chooseMachines(
  machines: readonly MachineSummary[],
  { config, configPath }: { readonly config: Config; readonly configPath: string },
  { typed, all, exclude }: Choice,
): readonly string[] {
  if ((typed.length === 0) === !all) {
    throw new CliError(
      'USAGE',
      all ? 'name machines, or use --all, not both' : 'no machine is named',
      'stillpoint backup MACHINE, or stillpoint backup --all',
    );
  }
  const known = [...machines, ...config.templates];
  const wanted = known
    .filter(({ name }) => policyFor(config, name, configPath).kind === 'policy')
    .toSorted((a, b) => (a.name < b.name ? -1 : 1));
  const isExact = (word: string): boolean => !/[*?]/.test(word) || known.some(({ name }) => name === word);
  const meant = (word: string): readonly string[] => {
    if (isExact(word)) return [word];
    const found = wanted.filter(({ name }) => matchesName(word, name)).map(({ name }) => name);
    if (found.length > 0) return found;
    throw new CliError('USAGE', `no machine that is to be backed up fits "${word}"`, 'stillpoint machines');
  };
  const chosen = all
    ? wanted.filter((one) => !('status' in one) || isActive(one.status)).map(({ name }) => name)
    : typed.flatMap(meant);
  const names = [...new Set(chosen)].filter((name) => !exclude.some((pattern) => matchesName(pattern, name)));
  if (names.length > 0) return names;
  throw new CliError(
    'USAGE',
    all
      ? '--all means no machine: none runs that is not excluded'
      : 'every machine that was named is excluded',
    'stillpoint machines',
  );
}

function isActive({ state }: MachineStatus): boolean {
  return state !== 'shut-off' && state !== 'crashed';
}
