import type { Config } from '../../config/schema.ts';

/** Names of the policies that have a schedule, of files and pushed ones alike. */
export function scheduledPolicies({ policies }: Pick<Config, 'policies'>): readonly string[] {
  return Object.entries(policies).flatMap(([name, { schedule }]) => (schedule === undefined ? [] : [name]));
}

/** As a sentence begins: which policies have a schedule. */
export function whoHasSchedule(names: readonly string[]): string {
  return names.length === 1 ? `policy ${names[0]} has` : `policies ${names.join(', ')} have`;
}
