import type { Agent } from '../../agent/agent.ts';
import type { Problem } from '../../agent/observe/problems.ts';
import { lookOnce } from '../hostLook.ts';
import { type Check, fail, warn } from './check.ts';

/** What a check of its own, or the session of the command, tells as a failure. */
const toldElsewhere: ReadonlySet<Problem['event']> = new Set<Problem['event']>([
  'job-parked',
  'libvirt-unreachable',
  'policies-unusable',
  'service-stopped',
  'storage-unusable',
]);

/** What `status` calls wrong and nothing else here looks at: where it exits with 3, something fails here too. */
export async function checkProblems(agent: Agent): Promise<readonly Check[]> {
  // Its check has told why.
  if (agent.parts.storages.size === 0) return [];
  const { problems } = await lookOnce(agent);
  return problems.flatMap((problem): readonly Check[] => {
    const { event, severity, message, hint } = problem;
    if (toldElsewhere.has(event)) return [];
    if (severity === 'critical') return [fail(titleOf(problem), message, hint)];
    // What fills up is told by the check of its storage.
    return event === 'never-backed-up' ? [warn(titleOf(problem), message, hint)] : [];
  });
}

function titleOf({ machine, storage }: Problem): string {
  if (machine !== null) return `machine ${machine.name}`;
  return storage === null ? 'machines' : `storage ${storage}`;
}
