import type { Agent } from '../../agent/agent.ts';
import { isOwnerAlive } from '../../agent/jobs/owner.ts';
import { scheduledPolicies, whoHasSchedule } from '../../agent/observe/scheduledPolicies.ts';
import { type Check, fail, ok, warn } from './check.ts';

/** Whether policies have schedules, and somebody acts on them. */
export function checkSchedules({ parts: { config, configPath, journal } }: Agent): readonly Check[] {
  const policies = scheduledPolicies(config);
  if (policies.length === 0)
    return [
      warn(
        'schedules',
        'no policy has a schedule: machines are backed up by command only',
        `policies: { default: { schedule: "30 2 * * *" } } in ${configPath}; or start the backups by means of your own`,
      ),
    ];
  const owner = journal.serviceOwner();
  const what = whoHasSchedule(policies);
  return owner !== undefined && isOwnerAlive(owner)
    ? [ok('schedules', `${what} a schedule; the service (process ${owner.pid}) acts on it`)]
    : [
        fail(
          'schedules',
          `${what} a schedule, and no service runs: nothing is backed up by it`,
          'systemctl enable --now stillpoint-agent.service; journalctl -u stillpoint-agent.service',
        ),
      ];
}
