import { isUuid } from '../../common/ids.ts';
import type {
  PlanRestoreRequest,
  PlanRestoreResponse,
  RestorePlan as PlanMessage,
  StartRestoreRequest,
  StartRestoreResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { type Caller, scopeOf } from './caller.ts';
import type { ApiCall, ApiContext } from './context.ts';
import { restoreStartValues } from './enums.ts';
import { ApiError } from './errors.ts';
import { jobMessage } from './jobMessage.ts';
import { pathsOf, requireDirectoryRight, requireRestoreRight } from './restoreRights.ts';
import { type RestorePlan, type RestoreWish, restoreWishOf } from './restoreWish.ts';
import { refusedKey, serviceEnding } from './startedBackups.ts';
import { fingerprintOf, requireKey } from './startRequest.ts';

/** @throws ApiError REQUEST_INVALID, RESTORE_DENIED; RestoreError; StorageError; AgentError STORAGE_NOT_CONFIGURED */
export async function planRestore(
  context: ApiContext,
  { restore }: PlanRestoreRequest,
  { caller }: ApiCall,
): Promise<PlanRestoreResponse> {
  return { plan: planMessage(await planFor(context, restoreWishOf(restore), caller)) };
}

/**
 * Begins a restore, once for each key. What was refused has begun nothing, and may be asked for again.
 * @throws as planRestore; ApiError; JobError MACHINE_BUSY, UNFINISHED_JOB, JOURNAL_UNUSABLE
 */
export async function startRestore(
  context: ApiContext,
  message: StartRestoreRequest,
  { caller }: ApiCall,
): Promise<StartRestoreResponse> {
  const { agent, started } = context;
  const key = { scope: scopeOf(caller), key: requireKey(message.idempotencyKey) };
  const wish = restoreWishOf(message.restore);
  if (!isUuid(wish.backup))
    throw new ApiError('REQUEST_INVALID', `"${wish.backup}" is not the whole id of a backup`, {
      hint: 'the one that ListBackups or PlanRestore has told',
    });
  const accepted = message.acceptedConflicts.toSorted();
  const jobId = await started.once(key, async () => {
    const { requests } = agent.parts.journal;
    const answer = requests.open(key, fingerprintOf('restore', [wish, accepted]));
    if (answer.kind === 'other' || answer.kind === 'full') throw refusedKey(answer.kind);
    const known = answer.kind === 'known' ? answer.outcomes[0]?.jobId : undefined;
    return known ?? (await begin(context, { wish, accepted, key, caller }));
  });
  return { job: jobMessage(agent, agent.parts.journal.get(jobId)) };
}

interface Begun {
  readonly wish: RestoreWish;
  readonly accepted: readonly string[];
  readonly key: { readonly scope: string; readonly key: string };
  readonly caller: Caller;
}

/** @returns the id of the job */
async function begin(context: ApiContext, { wish, accepted, key, caller }: Begun): Promise<string> {
  const { agent, started, log, ending } = context;
  const plan = await planFor(context, wish, caller);
  requireAccepted(plan, accepted);
  if (ending.aborted) throw serviceEnding();
  const job = agent.createRestore(plan, { request: { ...key, part: 'restore' } });
  const about = { jobId: job.id, machine: job.machineName, backup: plan.backup.id };
  log.info({ ...about, kind: plan.kind, caller: caller.name, pid: caller.pid }, 'restore asked for');
  started.begin(job);
  return job.id;
}

async function planFor(
  { agent }: ApiContext,
  { backup, storage, request }: RestoreWish,
  caller: Caller,
): Promise<RestorePlan> {
  const { delegatedRestore } = agent.parts.config.agent;
  if (request.to !== undefined) await requireDirectoryRight(request.to, caller, delegatedRestore);
  const plan = await agent.planRestore({ backup, storage, ...request });
  await requireRestoreRight(plan, caller, delegatedRestore);
  return plan;
}

/** Nobody is asked here: what the caller has not seen must not happen. */
function requireAccepted({ conflicts }: RestorePlan, accepted: readonly string[]): void {
  const open = conflicts.filter(({ kind }) => !accepted.includes(kind));
  if (open.length === 0) return;
  const kinds = [...new Set(open.map(({ kind }) => kind))].join(', ');
  throw new ApiError('RESTORE_NOT_ACCEPTED', open.map(({ message }) => message).join('; '), {
    hint: `if that may be: the same with accepted_conflicts ${kinds}, and another idempotency key`,
  });
}

function planMessage(plan: RestorePlan): PlanMessage {
  const { id, storage, pointInTime } = plan.backup;
  return {
    backupId: id,
    storage,
    pointInTime: new Date(pointInTime),
    machine: plan.machine,
    start: restoreStartValues[plan.start],
    paths: [...pathsOf(plan)],
    conflicts: plan.conflicts,
  };
}
