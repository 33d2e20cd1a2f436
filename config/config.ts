import { statSync } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type * as z from 'zod';
import { documentPath } from '../common/documents.ts';
import { isErrno } from '../common/errors.ts';
import { ConfigError, formatProblem } from './errors.ts';
import type { ConfigProblem } from './errors.ts';
import { configSchema } from './schema.ts';
import type { Config } from './schema.ts';
import { ConfigSource, ConfigSources } from './source.ts';
import type { KeptPolicies } from './pushedFile.ts';
import { danglingName, problemsOf, storageProblems } from './problems.ts';
import type { KeyPath } from './source.ts';

export const defaultConfigPath = '/etc/stillpoint/config.yaml';

/** A configuration that was read, and what there is to say about it. */
export interface LoadedConfig {
  readonly config: Config;
  /** The files that it comes from, in the order of their reading; none when all is default. */
  readonly files: readonly string[];
  /** What stands in `config` that no file says. */
  readonly pushed: PushedStatus;
}

/** What a controller has pushed to this host. */
export interface PushedStatus {
  /** What is kept of it; null: nothing was pushed yet, or it cannot be read. */
  readonly kept: KeptPolicies | null;
  /** What of it cannot be used, and why. */
  readonly problems: readonly string[];
}

export const nothingPushed: PushedStatus = { kept: null, problems: [] };

/**
 * Reads a configuration: a YAML file and its drop-ins, or a directory, whose `*.yaml` files are merged in the order of
 * their names. What a controller has pushed is not in it: see `loadHostConfig`. It is validated whole; nothing of it can be used if anything is wrong.
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

/** The files of a configuration, in the order of their reading. @throws ConfigError CONFIG_MISSING, CONFIG_UNREADABLE */
export async function filesOf(path: string, optional: boolean): Promise<readonly string[]> {
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

/** @throws ConfigError CONFIG_UNREADABLE */
export async function readText(file: string): Promise<string> {
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
  const isDirectory = statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
  const file = isDirectory ? join(path, 'storages.yaml') : path;
  return `write to ${file}:\nstorages:\n  local: { kind: directory, path: /var/backup/virtualization }`;
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
  return { config: withBackupAddress(result.data), files, pushed: nothingPushed };
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
    hint: `correct ${first.file} (every key is explained in ${documentPath('config/stillpoint.yaml')}), then: stillpoint doctor`,
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

/** Policies and storages that are referred to and are not there. */
function danglingNames(sources: ConfigSources, config: Config): readonly ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const check = (known: readonly string[], name: string, what: string, path: KeyPath): void => {
    problems.push(...danglingName(sources, path, { name, known, what }));
  };
  const storages = Object.keys(config.storages);
  for (const [name, policy] of Object.entries(config.policies))
    problems.push(...storageProblems(sources, name, policy, config));
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

/** What two storages must not have in common. */
function placeOf({ storages }: Config, name: string): string {
  const storage = storages[name];
  if (storage?.kind !== 'repository') return storage?.path ?? '';
  return storage.url.startsWith('file://')
    ? storage.url.slice('file://'.length)
    : `${storage.endpoint} ${storage.url}`;
}
