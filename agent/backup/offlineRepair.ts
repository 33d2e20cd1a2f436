import { messageOf } from '../../common/errors.ts';
import { exists } from '../../common/files.ts';
import type { Journal } from '../jobs/journal.ts';
import { headerState } from '../merge/completeness.ts';
import { putFrozenUnder } from '../merge/offline.ts';
import type { PlannedVolume } from '../snapshot/plan.ts';
import { inodeOf, isSameFile } from '../snapshot/workFiles.ts';
import { type BackupFacts, backupFactsSchema } from './facts.ts';

/** One image that was repaired, or found in order, before libvirt starts. */
export interface OfflineRepair {
  readonly jobId: string;
  readonly machine: string;
  readonly image: string;
  readonly action: 'none' | 'frozen-image-put-back' | 'backup-put-under' | 'missing' | 'failed';
  /** Why it could not be repaired. */
  readonly problem?: string | undefined;
}

/**
 * Repairs, from the journal alone and before libvirt starts, what a crash of the host left: an image whose
 * merge was not flushed looks healthy and would boot into zeros (trap 2), so its frozen image is put under it
 * again. Harmless when repeated. The rest of recovery needs libvirt and is the agent's.
 */
export async function repairOffline(journal: Journal): Promise<readonly OfflineRepair[]> {
  const repairs: OfflineRepair[] = [];
  for (const job of journal.holding()) {
    if (job.kind !== 'backup') continue;
    const about = { jobId: job.id, machine: job.machineName };
    try {
      // Other modes leave nothing that a start would read wrongly.
      if (!isSave(job.record)) continue;
      const facts = backupFactsSchema.parse(job.record);
      if (facts.flushed) continue;
      for (const volume of facts.plan?.volumes ?? []) {
        const repair = await repairVolume(facts, volume);
        if (repair !== undefined) repairs.push({ ...about, image: volume.file, ...repair });
      }
    } catch (error) {
      // An unreadable record must not keep the images of the other jobs from being repaired.
      repairs.push({ ...about, image: '', action: 'failed', problem: messageOf(error) });
    }
  }
  return repairs;
}

/** Of a record that cannot be read it is not known: it is reported. */
function isSave(record: unknown): boolean {
  const mode: unknown = Reflect.get(Object(Reflect.get(Object(record), 'settings')), 'mode');
  return mode !== 'live' && mode !== 'disk' && mode !== 'offline';
}

async function repairVolume(
  facts: BackupFacts,
  volume: PlannedVolume,
): Promise<Pick<OfflineRepair, 'action' | 'problem'> | undefined> {
  try {
    if (!(await exists(volume.file))) return { action: 'missing' };
    // Without a frozen image of its own the job has not begun with this volume.
    if (!(await exists(volume.frozen)) || (await isSameFile(volume.file, volume.frozen))) return undefined;
    const overlay = facts.overlayInodes?.[volume.target];
    if (overlay !== undefined && (await inodeOf(volume.file)) !== overlay) {
      return { action: 'failed', problem: 'somebody has put another image in its place' };
    }
    const header = await headerState(volume, {
      inUse: false,
      includeSharedBase: facts.settings.includeSharedBase,
    });
    if (facts.resuming !== true || header !== 'merged') return { action: 'none' };
    await putFrozenUnder(volume);
    return { action: 'frozen-image-put-back' };
  } catch (error) {
    return { action: 'failed', problem: messageOf(error) };
  }
}
