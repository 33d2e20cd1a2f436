import type { Manifest } from '../../storage/manifest.ts';
import type { Storage } from '../../storage/storage.ts';
import type { StepRow } from '../jobs/job.ts';
import type { StepContext } from '../jobs/step.ts';
import { type ArtifactNames, namesFor, type Retained } from '../retain/retain.ts';

/** What the facts of every kind of backup know when their manifests are written. */
interface CommitFacts {
  readonly backupId: string;
  readonly settings: { readonly storages: readonly string[] };
  readonly pointInTime?: string | undefined;
  readonly retained?: Readonly<Record<string, Retained>> | undefined;
}

interface CommitDependencies {
  /** @throws StorageError when the configuration has no such storage any more */
  readonly storage: (name: string) => Storage;
  /** The journal's account of the job's steps, for the manifest. */
  readonly stepRows: (jobId: string) => readonly StepRow[];
}

/** What one storage holds, to be described by its manifest. */
export interface ToCommit {
  readonly storageName: string;
  readonly pointInTime: string;
  readonly names: ArtifactNames;
  readonly retained: Retained;
  /** The steps that are done. */
  readonly steps: Manifest['steps'];
}

/**
 * Commits a backup in each of its job's storages that does not have it yet: the manifest is written last, and the
 * backup is listed from then on. May be started again after a crash.
 * @throws StorageError what a storage cannot take
 */
export async function commitManifests<Facts extends CommitFacts>(
  context: StepContext<Facts>,
  { storage: storageOf, stepRows }: CommitDependencies,
  machine: { readonly name: string; readonly uuid: string },
  describe: (backup: ToCommit) => Manifest,
): Promise<void> {
  const { facts, jobId } = context;
  const { pointInTime } = facts;
  if (pointInTime === undefined) throw new Error('the job has no point in time');
  const names = namesFor(machine.name, pointInTime);
  for (const storageName of facts.settings.storages) {
    const storage = storageOf(storageName);
    if ((await storage.findCommitted(facts.backupId)) !== null) continue;
    const retained = facts.retained?.[storageName];
    if (retained === undefined) throw new Error(`nothing was retained in ${storageName}`);
    const writer = await storage.begin({ jobId, backupId: facts.backupId, machine });
    const steps = stepRows(jobId).flatMap(({ name, durationMs }) =>
      durationMs === null ? [] : [{ name, durationMs }],
    );
    await writer.commit(describe({ storageName, pointInTime, names, retained, steps }));
    await context.point(storageName);
  }
}
