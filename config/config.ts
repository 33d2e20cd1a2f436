import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { z } from 'zod';
import { isErrno } from '../common/errors.ts';
import { ConfigError, formatProblem } from './errors.ts';
import type { ConfigProblem } from './errors.ts';
import { configSchema } from './schema.ts';
import type { Config, PolicyConfig } from './schema.ts';
import { ConfigSource, ConfigSources } from './source.ts';
import { membersOf, targetsOf } from './storageGroups.ts';
import type { KeyPath } from './source.ts';

export const defaultConfigPath = '/etc/stillpoint/config.yaml';

/** A configuration that was read, and what there is to say about it. */
export interface LoadedConfig {
  readonly config: Config;
  /** The files that it comes from, in the order of their reading; none when all is default. */
  readonly files: readonly string[];
}

/**
 * Reads a configuration: a YAML file and its drop-ins, or a directory, whose `*.yaml` files are merged in the order of
 * their names. It is validated whole; nothing of it can be used if anything is wrong.
 *
 * @param options.optional a missing file means that everything has its default, or what drop-ins say
 * @throws ConfigError naming every problem with file, line and column
 */
export async function loadConfig(
  path: string,
  options: { readonly optional?: boolean | undefined } = {},
): Promise<LoadedConfig> {
  const files = await filesOf(path, options.optional ?? false);
  const sources: ConfigSource[] = [];
  for (const file of files) sources.push(new ConfigSource(file, await readText(file)));
  return parseSources(sources.length === 0 ? [new ConfigSource(path, '')] : sources, files);
}

/** Reads a configuration from a text, as `loadConfig` does from a file of this name. */
export function parseConfig(text: string, file: string): LoadedConfig {
  return parseSources([new ConfigSource(file, text)], [file]);
}

/** Where the drop-ins of a configuration file are: those of `config.yaml` in `config.d` beside it. */
export function dropInsOf(file: string): string {
  return `${file.replace(/\.ya?ml$/, '')}.d`;
}

async function filesOf(path: string, optional: boolean): Promise<readonly string[]> {
  const inDirectory = await yamlFilesIn(path);
  if (inDirectory !== null) return inDirectory;
  const dropIns = (await yamlFilesIn(dropInsOf(path))) ?? [];
  try {
    await stat(path);
    return [path, ...dropIns];
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw unreadable(path, error);
    if (optional) return dropIns;
    throw new ConfigError('CONFIG_MISSING', `there is no configuration at ${path}`, {
      cause: error,
      hint: storageLines(path),
    });
  }
}

/** In the order of their names; null where there is no such directory. */
async function yamlFilesIn(directory: string): Promise<readonly string[] | null> {
  try {
    const names = (await readdir(directory)).filter(
      (name) => name.endsWith('.yaml') && !name.startsWith('.'),
    );
    return names.toSorted().map((name) => join(directory, name));
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return null;
    throw unreadable(directory, error);
  }
}

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    throw unreadable(file, error);
  }
}

function unreadable(path: string, cause: unknown): ConfigError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new ConfigError('CONFIG_UNREADABLE', `the configuration cannot be read: ${reason}`, {
    cause,
    hint: `ls -l ${path}; run as root`,
  });
}

/** What an operator adds to a configuration that names no storage yet. */
export function storageLines(path: string): string {
  return `write to ${path}:\nstorages:\n  local: { kind: directory, path: /var/backup/virtualization }`;
}

function parseSources(parts: readonly ConfigSource[], files: readonly string[]): LoadedConfig {
  refuseIfAny(parts.flatMap((source) => source.problems()));
  const sources = new ConfigSources(parts);
  const result = configSchema.safeParse(sources.merged());
  if (!result.success) {
    refuseIfAny(withoutFollowUps(result.error.issues).flatMap((issue) => problemsOf(sources, issue)));
    throw result.error; // issues without a problem: cannot be
  }
  refuseIfAny(danglingNames(sources, result.data));
  return { config: withBackupAddress(result.data), files };
}

function refuseIfAny(problems: readonly ConfigProblem[]): void {
  const [first] = problems;
  if (first === undefined) return;
  const sorted = problems.toSorted(
    (a, b) => a.file.localeCompare(b.file) || a.line - b.line || a.column - b.column,
  );
  const lines = sorted.map(formatProblem).join('\n');
  throw new ConfigError('CONFIG_INVALID', `the configuration is refused:\n${lines}`, {
    problems: sorted,
    hint: `correct ${first.file} (every key is explained in config/stillpoint.yaml), then: stillpoint doctor`,
  });
}

/** What every S3 storage has in common unless it says otherwise. */
function withBackupAddress(config: Config): Config {
  const localAddress = config.agent.backupAddress;
  if (localAddress === undefined) return config;
  const storages = Object.entries(config.storages).map(([name, storage]) => {
    const isS3 = storage.kind === 'repository' && storage.url.startsWith('s3:');
    return [name, isS3 ? { localAddress, ...storage } : storage] as const;
  });
  return { ...config, storages: Object.fromEntries(storages) };
}

type Issue = z.core.$ZodIssue;

/** A storage of a kind that is refused has keys of that kind: only the kind is worth telling. */
function withoutFollowUps(issues: readonly Issue[]): readonly Issue[] {
  const refusedKinds = new Set(
    issues.filter(({ path }) => path[0] === 'storages' && path[2] === 'kind').map(({ path }) => path[1]),
  );
  return issues.filter(
    ({ path }) => path[0] !== 'storages' || path[2] === 'kind' || !refusedKinds.has(path[1]),
  );
}

function problemsOf(sources: ConfigSources, issue: Issue): readonly ConfigProblem[] {
  const { path } = issue;
  if (issue.code === 'invalid_union') {
    // Where the value is of the form of one of them, what is wrong with it says more than what the forms are.
    const [only, ...others] = issue.errors.filter((issues) => !issues.some(isOfAnotherForm));
    if (only !== undefined && others.length === 0)
      return only.flatMap((inner) => problemsOf(sources, { ...inner, path: [...path, ...inner.path] }));
  }
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => sources.problemAt([...path, key], 'there is no such key'));
  }
  const message = issue.code === 'invalid_key' ? (issue.issues[0]?.message ?? issue.message) : issue.message;
  const missing = !sources.has(path) && path.length > 0 ? ' (it is missing)' : '';
  return [sources.problemAt(path, `${message}${missing}`)];
}

/** The value as a whole is not what this one of several forms asks for. */
function isOfAnotherForm({ code, path }: Issue): boolean {
  return path.length === 0 && (code === 'invalid_type' || code === 'invalid_value');
}

/** Policies and storages that are referred to and are not there. */
function danglingNames(sources: ConfigSources, config: Config): readonly ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const check = (names: readonly string[], name: string, what: string, path: KeyPath): void => {
    if (names.includes(name)) return;
    const known = names.length === 0 ? 'there is none' : `there is ${names.join(', ')}`;
    problems.push(sources.problemAt(path, `no ${what} is called ${name}; ${known}`));
  };
  const storages = Object.keys(config.storages);
  const targets = [...storages, ...Object.keys(config.storageGroups)];
  for (const [name, policy] of Object.entries(config.policies)) {
    for (const [index, storage] of (policy.storages ?? []).entries()) {
      check(targets, storage, 'storage', ['policies', name, 'storages', index]);
    }
    problems.push(...replicationProblems(sources, name, policy, config));
  }
  for (const [name, group] of Object.entries(config.storageGroups)) {
    if (storages.includes(name))
      problems.push(sources.problemAt(['storageGroups', name], `a storage is called ${name}, too`));
    for (const [index, storage] of group.storages.entries()) {
      const path = ['storageGroups', name, 'storages', index];
      check(storages, storage, 'storage', path);
      if (group.storages.indexOf(storage) < index)
        problems.push(sources.problemAt(path, `${storage} is in the group already`));
    }
  }
  for (const [index, name] of storages.entries()) {
    const same = storages.slice(0, index).find((other) => placeOf(config, other) === placeOf(config, name));
    if (same === undefined) continue;
    problems.push(
      sources.problemAt(
        ['storages', name, config.storages[name]?.kind === 'repository' ? 'url' : 'path'],
        `storage ${same} is the same place: that would be one copy, not two`,
      ),
    );
  }
  const policies = [...new Set(['default', ...Object.keys(config.policies)])];
  for (const [index, { policy }] of config.machines.entries()) {
    if (policy !== undefined) check(policies, policy, 'policy', ['machines', index, 'policy']);
  }
  for (const [index, { name }] of config.templates.entries()) {
    if (config.templates.findIndex((other) => other.name === name) === index) continue;
    problems.push(sources.problemAt(['templates', index, 'name'], `another template is called ${name}`));
  }
  return problems;
}

/** Copies come from where the backups of a policy are by then, and go to where they are not. */
function replicationProblems(
  sources: ConfigSources,
  policyName: string,
  policy: PolicyConfig,
  config: Config,
): readonly ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const storages = Object.keys(config.storages);
  const copies = policy.replicate.map(({ to }) => to);
  const targets = policy.storages ?? targetsOf(config).filter((one) => !copies.includes(one));
  const have = new Set(targets.flatMap((target) => [target, ...membersOf(config, target)]));
  for (const [index, { from, to }] of policy.replicate.entries()) {
    const refuse = (key: string, why: string): void => {
      problems.push(sources.problemAt(['policies', policyName, 'replicate', index, key], why));
    };
    if (config.storageGroups[from] !== undefined)
      refuse('from', `${from} is a group; name one of its storages: ${membersOf(config, from).join(', ')}`);
    else if (!storages.includes(from)) refuse('from', `no storage is called ${from}`);
    else if (!have.has(from)) refuse('from', `no backup of this policy is in ${from} by then`);
    if (!storages.includes(to)) refuse('to', `no storage is called ${to}`);
    else if (have.has(to)) refuse('to', `the backups of this policy are in ${to} already`);
    have.add(to);
  }
  return problems;
}

/** What two storages must not have in common. */
function placeOf({ storages }: Config, name: string): string {
  const storage = storages[name];
  if (storage?.kind !== 'repository') return storage?.path ?? '';
  return storage.url.startsWith('file://')
    ? storage.url.slice('file://'.length)
    : `${storage.endpoint} ${storage.url}`;
}
