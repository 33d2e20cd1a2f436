import type { AgentServer } from '../../proto/generated/stillpoint/v1/agent.ts';
import { getBackup, listBackups, startBackup } from './backupCalls.ts';
import type { CallerOf } from './callRules.ts';
import type { ApiContext } from './context.ts';
import { streaming, unary } from './handlers.ts';
import { getHost, listMachines } from './hostCalls.ts';
import { cancelJob, getJob, listJobs, retryJob } from './jobCalls.ts';
import { getPolicies, removePolicies, setPolicies } from './policyCalls.ts';
import { watchJob } from './jobWatch.ts';
import { planRestore, startRestore } from './restoreCalls.ts';

/** The calls of proto/stillpoint/v1/agent.proto. */
export function agentService(context: ApiContext, callerOf: CallerOf): AgentServer {
  const { log, closing, events } = context;
  const parts = { log, closing, callerOf };
  return {
    getHost: unary(parts, (request) => getHost(context, request)),
    listMachines: unary(parts, (request) => listMachines(context, request)),
    listBackups: unary(parts, (request) => listBackups(context, request)),
    getBackup: unary(parts, (request) => getBackup(context, request)),
    startBackup: unary(parts, (request, call) => startBackup(context, request, call)),
    planRestore: unary(parts, (request, call) => planRestore(context, request, call)),
    startRestore: unary(parts, (request, call) => startRestore(context, request, call)),
    listJobs: unary(parts, (request) => listJobs(context, request)),
    getJob: unary(parts, (request) => getJob(context, request)),
    cancelJob: unary(parts, (request, call) => cancelJob(context, request, call)),
    retryJob: unary(parts, (request, call) => retryJob(context, request, call)),
    watchJob: streaming(parts, (request, { signal }) => watchJob(context, request, signal)),
    setPolicies: unary(parts, (request, call) => setPolicies(context, request, call)),
    getPolicies: unary(parts, () => getPolicies(context)),
    removePolicies: unary(parts, (request, call) => removePolicies(context, request, call)),
    watchEvents: streaming(parts, ({ cursor }, { signal }) => events.watch(cursor, signal)),
  };
}
