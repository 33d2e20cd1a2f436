import * as z from 'zod';
import { errorRecord, messageOf, StillpointError } from '../common/errors.ts';
import type { StorageErrorCode } from '../storage/errors.ts';
import type { RepositoryErrorCode } from '../storage/repository/errors.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import { JobError } from './jobs/errors.ts';
import type { JobRow } from './jobs/job.ts';
import type { JobDefinition, StepContext } from './jobs/step.ts';
import { copyBackup, type PlannedCopy, planFromSources } from './replication.ts';

export const replicationFactsSchema = z.object({
  machine: z.object({ name: z.string(), uuid: z.string() }),
  /** As the policy names it: a storage or a group. */
  from: z.string(),
  /** The storages that this stands for; of a job that was written down by an older version `from`. */
  sources: z.array(z.string()).optional(),
  /** All storages whose backups are copied there, by this and other entries of the policy. */
  siblings: z.array(z.string()).optional(),
  /** In the form in which a backup says where it writes, so that `maxParallelMachines` counts this job, too. */
  settings: z.object({ storages: z.tuple([z.string()]), runDirectory: z.string() }),
  /** Ids of backups that were copied, oldest first. */
  copied: z.array(z.string()),
  /** Where each of them was copied from, by its id. */
  copiedFrom: z.record(z.string(), z.string()).optional(),
});

/** What the journal keeps of a replication. */
export type ReplicationFacts = z.infer<typeof replicationFactsSchema>;

/** The storages that are looked at for what is to be copied. */
function sourcesOf({ from, sources }: ReplicationFacts): readonly string[] {
  return sources ?? [from];
}

/** What has no use being tried again; it must not hold up what came after it. */
const hopeless: ReadonlySet<string> = new Set<StorageErrorCode | RepositoryErrorCode>([
  'BACKUP_DAMAGED',
  'BACKUP_FENCED',
]);

/** What a copy fails with that a collection has fenced: the second when it meets what is gone before it meets the fence. */
const afterFence: ReadonlySet<string> = new Set<RepositoryErrorCode>(['BACKUP_FENCED', 'REPOSITORY_DAMAGED']);

/**
 * Copies what a storage has of one machine into another one that has it not, oldest first. It ends at the first backup
 * whose copy fails, so that the next one begins there: what is older than the newest one there counts as pruned there.
 * Nothing is left of one that died: the next one plans anew.
 */
export function replicationJob(storage: (name: string) => Storage): JobDefinition<ReplicationFacts> {
  return {
    kind: 'replicate',
    parse: (record) => replicationFactsSchema.parse(record),
    steps: () => [
      {
        name: 'copy',
        state: 'retaining',
        reached: 'retained',
        cancellable: true,
        pausable: 'within',
        act: async (context) => copyMissing(context, storage),
      },
    ],
    settle: (_, cause) => {
      if (cause?.code === 'CANCELLED') return Promise.resolve({ kind: 'end', state: 'cancelled' });
      const died = new JobError('AGENT_DIED', 'the process that copied backups died', {
        hint: 'the next backup of the machine, or stillpoint replicate, brings what is missing',
        retryable: true,
      });
      return Promise.resolve({ kind: 'end', state: 'failed', error: errorRecord(cause ?? died) });
    },
  };
}

async function copyMissing(
  context: StepContext<ReplicationFacts>,
  storageOf: (name: string) => Storage,
): Promise<void> {
  const { machine, settings } = context.facts;
  const { siblings } = context.facts;
  const to = storageOf(settings.storages[0]);
  const sources = sourcesOf(context.facts).map(storageOf);
  const { copies, unread } = await planFromSources(sources, {
    machines: [machine.uuid],
    to,
    older: false,
    siblings,
  });
  for (const { storage, error } of unread)
    context.warn(`what ${storage} has is not copied to ${to.name} until it can be read: ${error.message}`);
  // What was made just now is in none of those that can be read: to end well would be to say that it is copied.
  const [away] = unread;
  if (copies.length === 0 && away !== undefined) throw away.error;
  const failures: StillpointError[] = [];
  for (const { from, ...planned } of copies) {
    // Between two is the best moment, and the journal is asked for it only now and then otherwise.
    if (context.cancelRequested) throw new JobError('CANCELLED', 'the job was cancelled');
    try {
      const copy = await copyOne(context, from, to, planned);
      const { copied, copiedFrom } = context.facts;
      const id = copy.id ?? '';
      context.commit({ copied: [...copied, id], copiedFrom: { ...copiedFrom, [id]: from.name } });
      await context.point('copied');
    } catch (error) {
      if (!(error instanceof StillpointError) || !hopeless.has(error.code)) throw error;
      context.warn(`${planned.entry.directory} is not copied to ${to.name}: ${error.message}`);
      failures.push(error);
    }
  }
  const [first] = failures;
  if (first !== undefined) throw first;
}

/** A copy that was fenced meanwhile is begun once more, behind the fence; one that was deleted there is refused again. */
async function copyOne(
  context: StepContext<ReplicationFacts>,
  from: Storage,
  to: Storage,
  planned: PlannedCopy,
): Promise<BackupEntry> {
  try {
    return await copyOnce(context, from, to, planned);
  } catch (error) {
    if (!(error instanceof StillpointError) || !afterFence.has(error.code)) throw error;
    return copyOnce(context, from, to, planned);
  }
}

function copyOnce(
  context: StepContext<ReplicationFacts>,
  from: Storage,
  to: Storage,
  planned: PlannedCopy,
): Promise<BackupEntry> {
  const { pointInTime } = planned.entry;
  return copyBackup(from, to, planned, {
    signal: context.signal,
    hold: context.hold,
    runDirectory: context.facts.settings.runDirectory,
    onProgress: (what, doneBytes) =>
      context.report({ detail: `${pointInTime} to ${to.name}: ${what}`, doneBytes }),
    onLeftOpen: (error) =>
      context.warn(`the copy to ${to.name} is left open, and storage gc waits for it: ${messageOf(error)}`),
  });
}

/**
 * What is copied is read for hours, and must stay until then.
 * @throws JobError MACHINE_BUSY where this replication may read the backup; a record that cannot be read may mean any
 */
export function requireNotCopied(job: JobRow, { storage, machine }: BackupEntry): void {
  const facts = replicationFactsSchema.safeParse(job.record).data;
  if (facts !== undefined && (!sourcesOf(facts).includes(storage) || facts.machine.uuid !== machine.uuid))
    return;
  throw new JobError('MACHINE_BUSY', `job ${job.id} copies backups of ${job.machineName} from ${storage}`, {
    hint: `stillpoint job watch ${job.id}`,
    retryable: true,
  });
}
