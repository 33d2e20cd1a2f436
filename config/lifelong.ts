import type { Config } from './schema.ts';

/** What of a changed configuration a running service can go by. */
export interface FollowableConfig {
  readonly config: Config;
  /** Keys in dotted form that differ and hold from the next start only. */
  readonly kept: readonly string[];
}

/**
 * Takes over from a changed configuration what holds for all that begins from then on. Everything else is read when the
 * service starts (a journal is open, a socket is listened at), and stays as it is.
 */
export function withoutLifelong(present: Config, wanted: Config): FollowableConfig {
  const { storages, storageGroups, policies, hostBackups, machines, templates } = wanted;
  const { ramDisk, maxParallelMachines, monitoringMarker, backupAddress, delegatedRestore } = wanted.agent;
  const ofAgent = { ramDisk, maxParallelMachines, monitoringMarker, backupAddress, delegatedRestore };
  const agent = { ...present.agent, ...ofAgent };
  const { acceptPolicies, keepAtLeast } = wanted.controller;
  const controller = { ...present.controller, acceptPolicies, keepAtLeast };
  const followed = { agent, controller, storages, storageGroups, policies, hostBackups, machines, templates };
  const config = { ...present, ...followed };
  const kept = [
    ...differing(config, wanted).filter((section) => !['agent', 'controller'].includes(section)),
    ...differing(agent, wanted.agent).map((key) => `agent.${key}`),
    ...differing(controller, wanted.controller).map((key) => `controller.${key}`),
  ];
  return { config, kept };
}

/** Keys whose values are not the same in both. */
function differing(a: object, b: object): readonly string[] {
  const other = new Map<string, unknown>(Object.entries(b));
  return Object.entries(a).flatMap(([key, value]) =>
    JSON.stringify(value) === JSON.stringify(other.get(key)) ? [] : [key],
  );
}
