import type { MachineSummary } from '../hypervisor/hypervisor.ts';
import type { JobRow } from '../jobs/job.ts';
import type { Machine } from '../../proto/generated/stillpoint/v1/agent.ts';
import { policyFor } from '../../config/policy.ts';
import type { Config } from '../../config/schema.ts';
import { machineStateValues } from './enums.ts';

/** A machine as a message. @throws ConfigError NO_STORAGE */
export function machineMessage(
  { uuid, name, status, persistent, autostart }: MachineSummary,
  { config, configPath }: { readonly config: Config; readonly configPath: string },
  holder: JobRow | undefined,
): Machine {
  const decision = policyFor(config, name, configPath);
  return {
    machine: { uuid, name },
    state: machineStateValues[status.state],
    stateReason: status.reason,
    persistent,
    autostart,
    policy: decision.kind === 'policy' ? decision.policy.name : '',
    excludedBy: decision.kind === 'excluded' ? decision.match : '',
    unfinishedJobId: holder?.id ?? '',
  };
}
