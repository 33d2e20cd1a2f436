import { createApiServer } from '../api/apiServer.ts';
import type { ApiContext } from '../api/context.ts';
import { type ServedApi, serveApi } from '../api/serveApi.ts';
import type { ServerFor } from './controllerAccess.ts';
import { copyAfter } from './copyAfter.ts';
import type { ServiceContext } from './service.ts';

/**
 * The part of the service that answers the command line, and whoever else has a listener.
 * @throws ApiError SERVICE_RUNNING, SOCKET_UNUSABLE; JobError JOURNAL_UNUSABLE
 */
export function serveCallers({
  agent,
  log,
  signal,
  jobSignals: signals,
  pushed,
}: ServiceContext): Promise<ServedApi> {
  return serveApi({
    agent,
    log,
    signals,
    pushed,
    ending: signal,
    makeCopies: (machine, onCopy) =>
      copyAfter(agent, machine, {
        log,
        signal,
        onCopy: ({ rule, job, error }) => onCopy({ ...rule, job, error }),
      }),
  });
}

/** Serves a controller that has shown its certificate what the socket serves. */
export function controllerServer(context: ApiContext): ServerFor {
  return (name) => createApiServer(context, () => ({ kind: 'controller', name }));
}
