import type { Agent } from '../agent/agent.ts';
import type { HostStatus } from '../agent/observe/hostStatus.ts';
import { HostWatch } from '../agent/observe/hostWatch.ts';
import { type Problem, problemsOf } from '../agent/observe/problems.ts';

const once = { storagesEveryMs: Infinity, machinesEveryMs: Infinity, patienceMs: 15_000 };

/** What is seen of a host at one moment. */
export interface HostLook {
  readonly status: HostStatus;
  readonly problems: readonly Problem[];
}

/**
 * How a host is now, for `status` and `doctor` alike. A storage that has not answered within 15 s is a problem.
 * @throws what `HostWatch.look` throws
 */
export async function lookOnce(agent: Agent): Promise<HostLook> {
  const { status, problems } = await lookBy(agent, new HostWatch({ agent, ...once }));
  return { status, problems: [...status.unseenStorages.map(silentStorage), ...problems] };
}

/** The same, once more, for who follows a host: he hears of it when a storage has given up. */
export async function lookBy(agent: Agent, watch: HostWatch): Promise<HostLook> {
  const status = await watch.look();
  const overdueMs = agent.parts.config.alerts.overdueSeconds * 1000;
  return { status, problems: problemsOf(status, { overdueMs, settleMs: 0 }) };
}

/** One that has not answered in the time that somebody waits is as good as away. */
function silentStorage(storage: string): Problem {
  return {
    key: `storage-unusable:${storage}`,
    event: 'storage-unusable',
    severity: 'critical',
    machine: null,
    storage,
    jobId: null,
    message: `storage ${storage} has not answered within ${once.patienceMs / 1000} s`,
    hint: 'stillpoint storage list',
  };
}
