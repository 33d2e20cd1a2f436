import * as z from 'zod';
import { documentPath } from '../common/documents.ts';
import { ConfigError, type ConfigProblem } from './errors.ts';
import { atLeast, type Keep } from './keep.ts';
import { danglingName, type Places, problemsOf, storageProblems } from './problems.ts';
import { type Config, emptyPolicy, machineRule, name, policy, type PolicyConfig } from './schema.ts';
import type { KeyPath } from './source.ts';

/** A longer document is refused. Bytes. */
export const pushedBytesMax = 1024 * 1024;
const policiesMax = 1000;
const rulesMax = 10_000;
const toldMax = 10;

/** What of a configuration only the host itself decides, and why. */
const onlyHere: ReadonlyMap<string, string> = new Map([
  ['hooks', 'they run programs as root; a rule can name a policy of the host that has them'],
  ['retainDirectory', 'it is a path of the host'],
  ['agent', 'it is how the host itself is set up'],
  ['controller', 'it is whom the host listens to'],
  ['storages', 'they have paths and secrets; a policy names those that the host has'],
  ['storageGroups', 'a policy names those that the host has'],
  ['hostBackups', 'they hold the keys of the host'],
  ['templates', 'they are paths of the host'],
  ['metrics', 'it is where the host listens and writes'],
  ['alerts', 'they have addresses and secrets'],
]);

/** What a controller can push: of a policy everything but what reaches beyond backups. */
const pushedSchema = z.strictObject({
  policies: z
    .record(name, policy.omit({ hooks: true, retainDirectory: true }))
    .default({})
    .refine((all) => Object.keys(all).length <= policiesMax, `expected ${policiesMax} policies or less`),
  machines: z.array(machineRule).max(rulesMax, `expected ${rulesMax} rules or less`).default([]),
});

/** Policies and rules of machines that were pushed, with defaults filled in. */
export interface PushedDocument {
  readonly policies: ReadonlyMap<string, PolicyConfig>;
  readonly machines: Config['machines'];
}

/** What a host has that pushed policies refer to. */
export type PushTarget = Pick<Config, 'storages' | 'storageGroups' | 'policies'>;

/** What stands behind the name of a policy that was pushed; no name of a file can have it. */
const pushedSuffix = '@controller';

/** The name by which a pushed policy is known on the host: its own, marked, so that it is never that of a file. */
export function pushedName(own: string): string {
  return `${own}${pushedSuffix}`;
}

export function isPushedName(policyName: string): boolean {
  return policyName.endsWith(pushedSuffix);
}

/** What machines have whose pushed policy cannot be used: the `default` of the host, by which nothing is pruned. */
export const standInName = 'default@stand-in';

/**
 * Reads a document that was pushed: JSON with `policies` and `machines`, as in a file of the configuration.
 * @throws ConfigError POLICIES_INVALID naming everything that is wrong by its path
 */
export function parsePushed(text: string): PushedDocument {
  const document = parseJson(text);
  const places = placesIn(document);
  const result = pushedSchema.safeParse(document);
  if (!result.success) {
    const problems = result.error.issues.flatMap((issue) => problemsOf(places, issue)).map(withReason);
    throw refused(problems);
  }
  const { policies, machines } = result.data;
  const whole = new Map(
    Object.entries(policies).map(([own, said]) => [own, { ...emptyPolicy(), ...said }] as const),
  );
  return { policies: whole, machines };
}

/** Policies of a pushed document that name storages which this host does not have, with what is wrong with each. */
export function unusablePolicies(
  { policies }: PushedDocument,
  target: PushTarget,
): ReadonlyMap<string, readonly ConfigProblem[]> {
  const found = [...policies].map(
    ([own, said]) => [own, storageProblems(anywhere, own, said, target)] as const,
  );
  return new Map(found.filter(([, problems]) => problems.length > 0));
}

/** What of a pushed document this host cannot go by: storages and policies that are named and not there. */
export function unusableParts(document: PushedDocument, target: PushTarget): readonly ConfigProblem[] {
  const known = ['default', ...document.policies.keys(), ...localNames(target)];
  return [
    ...[...unusablePolicies(document, target).values()].flat(),
    ...document.machines.flatMap(({ policy: named }, index) =>
      named === undefined
        ? []
        : danglingName(anywhere, ['machines', index, 'policy'], { name: named, known, what: 'policy' }),
    ),
  ];
}

/** Names of the policies that the host's own files define. */
function localNames({ policies }: Pick<Config, 'policies'>): readonly string[] {
  return Object.keys(policies).filter((one) => !one.includes('@'));
}

/** @throws ConfigError POLICIES_INVALID where this host cannot go by all of it */
export function requireUsable(document: PushedDocument, target: PushTarget): void {
  const problems = unusableParts(document, target);
  if (problems.length > 0) throw refused(problems);
}

/**
 * A configuration of files with what was pushed beside it. Rules of the files come first, then those that were pushed;
 * `default` of the files holds for the rest, or where they have none that which was pushed. Nothing that files say is
 * changed. A machine whose pushed policy this host cannot go by is backed up by its `default`, and not pruned.
 */
export function besides(local: Config, { policies, machines }: PushedDocument): Config {
  const unusable = unusablePolicies({ policies, machines }, local);
  const own = new Set(localNames(local));
  const floor = local.controller.keepAtLeast;
  const pushed = [...policies].filter(([one]) => !unusable.has(one));
  /** What a rule means by a name: what was pushed with it comes first. */
  const meant = (named: string): string => {
    if (policies.has(named)) return unusable.has(named) ? standInName : pushedName(named);
    return own.has(named) || named === 'default' ? named : standInName;
  };
  const rules = machines.map((rule) =>
    rule.policy === undefined ? rule : { ...rule, policy: meant(rule.policy) },
  );
  if (policies.has('default') && !own.has('default')) rules.push({ match: '*', policy: meant('default') });
  return {
    ...local,
    policies: {
      ...local.policies,
      ...Object.fromEntries(pushed.map(([one, said]) => [pushedName(one), withFloor(said, floor)])),
      ...(rules.some(({ policy: named }) => named === standInName) ? { [standInName]: standIn(local) } : {}),
    },
    machines: [...local.machines, ...rules],
  };
}

/** A configuration of files where it cannot be read what was pushed: who knows which machines it named. */
export function besidesUnknown(local: Config): Config {
  return {
    ...local,
    policies: { ...local.policies, [standInName]: standIn(local) },
    machines: [...local.machines, { match: '*', policy: standInName }],
  };
}

function standIn({ policies }: Config): PolicyConfig {
  const said = policies['default'] ?? emptyPolicy();
  return { ...said, keep: null, replicate: said.replicate.map((copy) => ({ ...copy, keep: null })) };
}

function withFloor(said: PolicyConfig, floor: Keep | null): PolicyConfig {
  if (floor === null) return said;
  const raised = (wanted: Keep | null): Keep | null => (wanted === null ? null : atLeast(wanted, floor));
  const replicate = said.replicate.map((copy) =>
    copy.keep === undefined ? copy : { ...copy, keep: raised(copy.keep) },
  );
  return { ...said, keep: raised(said.keep), replicate };
}

/** A key that means something to objects of JavaScript would be lost on the way, with what it holds. */
function refusePrototype(document: unknown): void {
  for (const open = [document]; open.length > 0; ) {
    const value = open.pop();
    if (typeof value !== 'object' || value === null) continue;
    if (Object.hasOwn(value, '__proto__')) throw refused([problemAt([], 'nothing can be called __proto__')]);
    for (const within of Object.values(value)) open.push(within);
  }
}

function parseJson(text: string): unknown {
  if (Buffer.byteLength(text) > pushedBytesMax)
    throw refused([problemAt([], `it is larger than ${pushedBytesMax} bytes`)]);
  try {
    const document: unknown = JSON.parse(text);
    refusePrototype(document);
    return document;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw refused([problemAt([], `it is no JSON: ${error.message}`)]);
  }
}

/** What a schema has let through has everything that it names. */
const anywhere: Places = { has: () => true, problemAt };

function placesIn(document: unknown): Places {
  const has = (path: KeyPath): boolean => {
    let value = document;
    for (const key of path) {
      if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return false;
      value = new Map<PropertyKey, unknown>(Object.entries(value)).get(String(key));
    }
    return true;
  };
  return { has, problemAt };
}

/** JSON that a program has made has no lines worth telling. */
function problemAt(path: KeyPath, message: string): ConfigProblem {
  return { file: 'document', line: 1, column: 1, key: path.map(String).join('.'), message };
}

function withReason(problem: ConfigProblem): ConfigProblem {
  const reason = onlyHere.get(problem.key.split('.').at(-1) ?? '');
  if (reason === undefined || problem.message !== 'there is no such key') return problem;
  return { ...problem, message: `it cannot be pushed: ${reason}` };
}

function refused(problems: readonly ConfigProblem[]): ConfigError {
  const told = problems.slice(0, toldMax).map(describeProblem);
  if (problems.length > toldMax) told.push(`and ${problems.length - toldMax} more`);
  return new ConfigError('POLICIES_INVALID', `the policies are refused: ${told.join('; ')}`, {
    problems,
    hint: `nothing was changed; correct them and push them again (${documentPath('docs/POLICIES.md')} says what can be pushed)`,
  });
}

/** `policies.gold.mode: message`. */
export function describeProblem({ key, message }: ConfigProblem): string {
  return key === '' ? message : `${key}: ${message}`;
}
