import type { Agent } from '../../agent/agent.ts';
import { isOwnerAlive } from '../../agent/jobs/owner.ts';
import { type Check, ok, warn } from './check.ts';

/** Whether somebody acts on the schedules of the policies; nothing where no policy has one. */
export function checkSchedules({ parts: { config, journal } }: Agent): readonly Check[] {
  const policies = Object.entries(config.policies).flatMap(([name, { schedule }]) =>
    schedule === undefined ? [] : [name],
  );
  if (policies.length === 0) return [];
  const owner = journal.serviceOwner();
  const what = policies.length === 1 ? `policy ${policies[0]} has` : `policies ${policies.join(', ')} have`;
  return owner !== undefined && isOwnerAlive(owner)
    ? [ok('schedules', `${what} a schedule; the service (process ${owner.pid}) acts on it`)]
    : [
        warn(
          'schedules',
          `${what} a schedule, and no service runs: nothing is backed up by it`,
          'systemctl enable --now stillpoint-agent.service; journalctl -u stillpoint-agent.service',
        ),
      ];
}
