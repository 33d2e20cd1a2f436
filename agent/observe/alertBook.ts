import { newId } from '../../common/ids.ts';
import { alertEvents } from '../../config/observability.ts';
import type { Alert, Notice } from './alert.ts';
import type { HostStatus } from './hostStatus.ts';
import type { Problem } from './problems.ts';

/** What is to be told, and the alerts that last from then on. */
export interface AlertChange {
  readonly open: readonly Alert[];
  readonly notices: readonly Notice[];
}

/**
 * Compares what is wrong with what has been told: each alert is told once, once more when it becomes worse, and when it
 * is over. What cannot be known now, because a storage has not answered yet, goes on.
 *
 * @param open alerts that last
 */
export function compareAlerts(
  open: readonly Alert[],
  problems: readonly Problem[],
  { atMs, storages, unseenStorages }: HostStatus,
): AlertChange {
  const unlisted = storages.flatMap(({ name, listedAtMs }) => (listedAtMs === null ? [name] : []));
  const unknown = new Set([...unseenStorages, ...unlisted]);
  const present = new Map(problems.map((problem) => [problem.key, problem]));
  const notices: Notice[] = [];
  const lasting: Alert[] = [];
  for (const alert of open) {
    const problem = present.get(alert.key);
    present.delete(alert.key);
    const isUnknown = alert.storage !== null && unknown.has(alert.storage);
    if (problem === undefined && !isUnknown) {
      notices.push({ status: 'resolved', alert, atMs });
      continue;
    }
    const isWorse = alert.severity === 'warning' && problem?.severity === 'critical';
    const now: Alert = isWorse ? { ...alert, severity: 'critical', message: problem.message } : alert;
    if (isWorse) notices.push({ status: 'firing', alert: now, atMs });
    lasting.push(now);
  }
  for (const problem of present.values()) {
    const alert = alertOf(problem, atMs);
    if (alert === undefined) continue;
    lasting.push(alert);
    notices.push({ status: 'firing', alert, atMs });
  }
  return { open: lasting, notices };
}

/** `undefined` for a problem that no alert is sent about. */
function alertOf(problem: Problem, startedAtMs: number): Alert | undefined {
  const { key, severity, machine, storage, jobId, message, hint } = problem;
  const event = alertEvents.find((known) => known === problem.event);
  if (event === undefined) return undefined;
  return { id: newId(), key, event, severity, machine, storage, jobId, message, hint, startedAtMs };
}
