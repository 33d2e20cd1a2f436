import { join } from 'node:path';
import { repairAllOffline } from '../../agent/offlineRepair.ts';
import { Journal } from '../../agent/jobs/journal.ts';
import { exists } from '../../common/files.ts';
import type { RunVerb } from '../cli.ts';
import { readConfig } from '../session.ts';

/** `stillpoint repair-offline`: runs before libvirt and needs none. */
export const repairOfflineVerb: RunVerb = async (cli) => {
  const { config } = await readConfig(cli);
  const journalFile = join(config.agent.stateDir, 'journal.sqlite');
  const repairs = [];
  // Without a journal there was never a job.
  if (await exists(journalFile)) {
    using journal = new Journal(journalFile);
    repairs.push(...(await repairAllOffline(journal)));
  }
  if (cli.terminal.json) {
    cli.terminal.object({ repairs });
    return exitOf(repairs);
  }
  const said = {
    none: 'is in order',
    'frozen-image-put-back': 'stands on its frozen image again',
    'backup-put-under': 'stands on the backup that it is restored from',
    missing: 'IS MISSING',
    failed: 'COULD NOT BE REPAIRED',
  } as const;
  for (const { machine, image, action, jobId, problem } of repairs) {
    const why = problem === undefined ? '' : `: ${problem}`;
    cli.terminal.out(`${machine}: ${image} ${said[action]}${why} (job ${jobId})`);
  }
  if (repairs.length === 0) cli.terminal.remark('nothing to repair');
  return exitOf(repairs);
};

/** A missing image, and one that could not be repaired, needs somebody before its machine is started. */
function exitOf(repairs: readonly { readonly action: string }[]): 0 | 9 {
  return repairs.some(({ action }) => action === 'missing' || action === 'failed') ? 9 : 0;
}
