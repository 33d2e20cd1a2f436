import type {
  GetPoliciesResponse,
  PushedPolicies as PoliciesMessage,
  RemovePoliciesRequest,
  RemovePoliciesResponse,
  SetPoliciesRequest,
  SetPoliciesResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { Caller } from './caller.ts';
import type { ApiCall, ApiContext } from './context.ts';
import { ApiError } from './errors.ts';
import { errorDetail } from './grpcErrors.ts';
import type { PushedView } from './pushedPolicies.ts';

/** @throws ApiError CALLER_DENIED, REQUEST_INVALID; what `PushedPolicies.set` throws */
export async function setPolicies(
  { pushed }: ApiContext,
  { revision, document, validateOnly }: SetPoliciesRequest,
  { caller }: ApiCall,
): Promise<SetPoliciesResponse> {
  requireRight(caller);
  const push = { revision: revisionOf(revision), document, validateOnly };
  const changed = await pushed.set(push, caller);
  return { policies: message(await pushed.view()), changed };
}

/** What was pushed holds no secrets: whoever may use the API may read it. */
export async function getPolicies({ pushed }: ApiContext): Promise<GetPoliciesResponse> {
  return { policies: message(await pushed.view()) };
}

/** @throws ApiError CALLER_DENIED, REQUEST_INVALID; what `PushedPolicies.remove` throws */
export async function removePolicies(
  { pushed }: ApiContext,
  { revision }: RemovePoliciesRequest,
  { caller }: ApiCall,
): Promise<RemovePoliciesResponse> {
  requireRight(caller);
  const changed = await pushed.remove(revisionOf(revision), caller);
  return { policies: message(await pushed.view()), changed };
}

/**
 * Policies are for the controller of the host, and for who can write its files anyway: not for a group that may use the
 * socket.
 * @throws ApiError CALLER_DENIED
 */
export function requireRight({ kind, name, isPrivileged }: Caller): void {
  if (kind === 'controller' || isPrivileged === true) return;
  throw new ApiError('CALLER_DENIED', `${name} may not change the policies of this host`, {
    hint: 'as root, or as the controller of the host',
  });
}

function revisionOf(revision: bigint): number {
  if (revision >= 1n && revision <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(revision);
  throw new ApiError('REQUEST_INVALID', `revision must be 1 to ${Number.MAX_SAFE_INTEGER}`, {
    hint: 'give each change a greater one than the change before',
  });
}

function message({ kept, inForce, problems }: PushedView): PoliciesMessage {
  return {
    revision: BigInt(kept?.revision ?? 0),
    document: kept?.document ?? '',
    setBy: kept?.setBy ?? '',
    setAt: kept === null ? undefined : new Date(kept.setAt),
    inForce,
    problems: problems.map((text) =>
      errorDetail({
        code: 'POLICIES_INVALID',
        message: text,
        hint: 'push policies that this host can use',
        retryable: false,
      }),
    ),
  };
}
