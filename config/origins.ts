import { filesOf, readText } from './config.ts';
import { ConfigSource, ConfigSources, type KeyPath } from './source.ts';

/** Where something of a configuration stands. Lines count from 1. */
export interface Origin {
  readonly file: string;
  readonly line: number;
}

/** Where policies and rules of machines stand in the files of a configuration. */
export interface Origins {
  readonly policies: ReadonlyMap<string, Origin>;
  /** In the order of `machines`. */
  readonly machines: readonly Origin[];
}

/**
 * Looks where policies and rules stand in the files of a valid configuration.
 * @param optional as `loadConfig` has it
 * @throws ConfigError CONFIG_MISSING, CONFIG_UNREADABLE
 */
export async function loadOrigins(
  path: string,
  { policies, machines }: { readonly policies: readonly string[]; readonly machines: number },
  { optional = false }: { readonly optional?: boolean } = {},
): Promise<Origins> {
  const sources: ConfigSource[] = [];
  for (const file of await filesOf(path, optional))
    sources.push(new ConfigSource(file, await readText(file)));
  const whole = new ConfigSources(sources.length === 0 ? [new ConfigSource(path, '')] : sources);
  const originOf = (at: KeyPath): Origin => {
    const { file, line } = whole.problemAt(at, '');
    return { file, line };
  };
  return {
    policies: new Map(policies.map((name) => [name, originOf(['policies', name])])),
    machines: Array.from({ length: machines }, (_, index) => originOf(['machines', index])),
  };
}
