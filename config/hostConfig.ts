import { loadConfig, type LoadedConfig } from './config.ts';
import { ConfigError } from './errors.ts';
import { type KeptPolicies, PushedFile, type ReadPolicies } from './pushedFile.ts';
import { besides, besidesUnknown, describeProblem, parsePushed, unusableParts } from './pushedPolicies.ts';

/**
 * Reads the configuration of a host: its files, and beside them what a controller has pushed. What was pushed never
 * makes it fail: what cannot be used of it is told in `pushed.problems`.
 * @throws ConfigError as `loadConfig` does
 */
export async function loadHostConfig(
  path: string,
  options: { readonly optional?: boolean | undefined } = {},
): Promise<LoadedConfig> {
  const local = await loadConfig(path, options);
  return withPushed(local, await new PushedFile(local.config.agent.stateDir).read());
}

/**
 * A configuration of files with what was pushed beside it.
 * @param before what was kept when it could still be read: it holds as long as the file cannot be used
 */
export function withPushed(
  local: LoadedConfig,
  { kept: found, problem }: ReadPolicies,
  before: KeptPolicies | null = null,
): LoadedConfig {
  const kept = problem === null ? found : before;
  if (!local.config.controller.acceptPolicies) return { ...local, pushed: { kept, problems: [] } };
  const problems = problem === null ? [] : [problem];
  if (kept === null)
    return problem === null
      ? local
      : { ...local, config: besidesUnknown(local.config), pushed: { kept, problems } };
  if (kept.document === null) return { ...local, pushed: { kept, problems } };
  try {
    const document = parsePushed(kept.document);
    const unusable = unusableParts(document, local.config).map(describeProblem);
    const config = besides(local.config, document);
    return { ...local, config, pushed: { kept, problems: [...problems, ...unusable] } };
  } catch (error) {
    // It was valid once: for another version of this program.
    if (!(error instanceof ConfigError)) throw error;
    const config = besidesUnknown(local.config);
    return { ...local, config, pushed: { kept, problems: [...problems, error.message] } };
  }
}
