import { messageOf } from '../common/errors.ts';
import { type OfflineRepair, repairOffline } from './backup/offlineRepair.ts';
import type { Journal } from './jobs/journal.ts';
import { repairInstantOffline } from './restore/instantRecovery.ts';
import { restoreFactsSchema } from './restore/plan.ts';

/**
 * Repairs, from the journal alone and before libvirt starts, the images of all unfinished jobs. An unreadable record
 * keeps no other job's images from being repaired.
 */
export async function repairAllOffline(journal: Journal): Promise<readonly OfflineRepair[]> {
  const repairs = [...(await repairOffline(journal))];
  for (const job of journal.holding()) {
    if (job.kind !== 'restore') continue;
    const about = { jobId: job.id, machine: job.machineName };
    try {
      const images = await repairInstantOffline(restoreFactsSchema.parse(job.record));
      for (const image of images) repairs.push({ ...about, image, action: 'backup-put-under' });
    } catch (error) {
      repairs.push({ ...about, image: '', action: 'failed', problem: messageOf(error) });
    }
  }
  return repairs;
}
