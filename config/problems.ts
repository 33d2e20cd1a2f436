import type * as z from 'zod';
import type { ConfigProblem } from './errors.ts';
import type { Config, PolicyConfig } from './schema.ts';
import { membersOf, sourcesInto, targetsOf } from './storageGroups.ts';
import type { KeyPath } from './source.ts';

/** A document that knows what stands where in it. */
export interface Places {
  /** True when there is something at this path. */
  has(path: KeyPath): boolean;
  problemAt(path: KeyPath, message: string): ConfigProblem;
}

/** What a schema has said about a value, in words for who wrote the document. */
export function problemsOf(places: Places, issue: z.core.$ZodIssue): readonly ConfigProblem[] {
  const { path } = issue;
  if (issue.code === 'invalid_union') {
    // Where the value is of the form of one of them, what is wrong with it says more than what the forms are.
    const [only, ...others] = issue.errors.filter((issues) => !issues.some(isOfAnotherForm));
    if (only !== undefined && others.length === 0)
      return only.flatMap((inner) => problemsOf(places, { ...inner, path: [...path, ...inner.path] }));
  }
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => places.problemAt([...path, key], 'there is no such key'));
  }
  const message = issue.code === 'invalid_key' ? (issue.issues[0]?.message ?? issue.message) : issue.message;
  const missing = !places.has(path) && path.length > 0 ? ' (it is missing)' : '';
  return [places.problemAt(path, `${message}${missing}`)];
}

/** The value as a whole is not what this one of several forms asks for. */
function isOfAnotherForm({ code, path }: z.core.$ZodIssue): boolean {
  return path.length === 0 && (code === 'invalid_type' || code === 'invalid_value');
}

/** Somebody names what is not there. @returns nothing where it is */
export function danglingName(
  places: Places,
  path: KeyPath,
  { name, known, what }: { readonly name: string; readonly known: readonly string[]; readonly what: string },
): readonly ConfigProblem[] {
  if (known.includes(name)) return [];
  const there = known.length === 0 ? 'there is none' : `there is ${[...new Set(known)].join(', ')}`;
  return [places.problemAt(path, `no ${what} is called ${name}; ${there}`)];
}

type Storages = Pick<Config, 'storages' | 'storageGroups'>;

/** Storages that a policy names and that are not there, and copies that make no sense. */
export function storageProblems(
  places: Places,
  policyName: string,
  policy: Pick<PolicyConfig, 'storages' | 'replicate'>,
  config: Storages,
): readonly ConfigProblem[] {
  const known = [...Object.keys(config.storages), ...Object.keys(config.storageGroups)];
  const dangling = (policy.storages ?? []).flatMap((name, index) =>
    danglingName(places, ['policies', policyName, 'storages', index], { name, known, what: 'storage' }),
  );
  return [...dangling, ...replicationProblems(places, policyName, policy, config)];
}

/** Copies come from where the backups of a policy are by then, and go to where they are not. */
function replicationProblems(
  places: Places,
  policyName: string,
  policy: Pick<PolicyConfig, 'storages' | 'replicate'>,
  config: Storages,
): readonly ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const storages = Object.keys(config.storages);
  const copies = policy.replicate.map(({ to }) => to);
  const targets = policy.storages ?? targetsOf(config).filter((one) => !copies.includes(one));
  const made = new Set(targets.flatMap((target) => membersOf(config, target)));
  const have = new Set(made);
  const seen: (typeof policy.replicate)[number][] = [];
  for (const [index, { from, to, keep }] of policy.replicate.entries()) {
    const refuse = (key: string, why: string): void => {
      problems.push(places.problemAt(['policies', policyName, 'replicate', index, key], why));
    };
    const members = membersOf(config, from);
    if (config.storageGroups[from] === undefined && !storages.includes(from))
      refuse('from', `no storage is called ${from}`);
    else if (!members.some((name) => have.has(name)))
      refuse('from', `no backup of this policy is in ${from} by then`);
    if (!storages.includes(to)) refuse('to', `no storage is called ${to}`);
    else if (members.includes(to)) refuse('to', `${to} is what it is copied from`);
    else if (made.has(to)) refuse('to', `the backups of this policy are in ${to} already`);
    else if (have.has(to)) {
      // Several storages of a group may be named one by one; what was copied is not copied back, nor twice.
      const before = new Set(sourcesInto(config, seen, to));
      if (members.some((name) => before.has(name) || !made.has(name)))
        refuse('to', `the backups of this policy are in ${to} already`);
      const said = seen.some((entry) => entry.to === to && entry.keep !== undefined);
      if (keep !== undefined && said)
        refuse('keep', `what is kept in ${to} is said by an entry before this one`);
    }
    have.add(to);
    seen.push({ from, to, keep });
  }
  return problems;
}
