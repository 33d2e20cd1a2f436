import { dirname } from 'node:path';
import type { AgentParts } from './agent.ts';
import { clearMarkers } from './snapshot/snapshottingMarker.ts';

/** Takes away the markers of snapshots that no unfinished job has left; what cannot be taken away is told. */
export async function clearLeftMarkers({
  config,
  journal,
  note,
  report,
}: Pick<AgentParts, 'config' | 'journal' | 'note' | 'report'>): Promise<void> {
  const unfinished = new Set(journal.holding().map(({ id }) => id));
  try {
    const cleared = await clearMarkers(dirname(config.agent.socket), (jobId) => unfinished.has(jobId));
    if (cleared.length > 0) note?.({ markers: cleared }, 'markers of snapshots that nobody had taken away');
  } catch (error) {
    report(undefined, error);
  }
}
