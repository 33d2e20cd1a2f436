import type { Logger } from '../../common/log.ts';
import type { Agent } from '../agent.ts';
import { thisOwner } from '../jobs/owner.ts';
import { Background } from './background.ts';
import type { ApiContext } from './context.ts';
import { HostEvents } from './hostEvents.ts';
import type { JobSignals } from './jobSignals.ts';
import type { PushedPolicies } from './pushedPolicies.ts';
import { serviceRunning } from './socketFile.ts';
import { serveOnSocket } from './socketListener.ts';
import { type MakeCopies, StartedBackups } from './startedBackups.ts';

export interface ServeApiOptions {
  readonly agent: Agent;
  readonly log: Logger;
  readonly signals: JobSignals;
  readonly makeCopies: MakeCopies;
  readonly pushed: PushedPolicies;
  /** Aborted when nothing new is to be begun. */
  readonly ending: AbortSignal;
}

/** The API of a host at work. */
export interface ServedApi extends AsyncDisposable {
  /** For other listeners, such as that of a controller. */
  readonly context: ApiContext;
}

/**
 * Serves the API of this host on its socket. Disposed, it waits for the backups that it has begun, then ends its streams
 * and its socket.
 * @throws ApiError SERVICE_RUNNING, SOCKET_UNUSABLE; JobError JOURNAL_UNUSABLE
 */
export async function serveApi(options: ServeApiOptions): Promise<ServedApi> {
  const { agent, log, signals, pushed, ending, makeCopies } = options;
  const { journal, config } = agent.parts;
  if (!journal.claimService(thisOwner()))
    throw serviceRunning(`process ${journal.serviceOwner()?.pid} has ${config.agent.stateDir}`);
  const background = new Background(log);
  const closing = new AbortController();
  const events = new HostEvents({ agent, log, signals });
  const started = new StartedBackups({ agent, log, signals, background, makeCopies, ending });
  const context: ApiContext = {
    agent,
    log,
    signals,
    pushed,
    started,
    events,
    background,
    startedAtMs: Date.now(),
    ending,
    closing: closing.signal,
  };
  const { socket: path, socketGroup: group } = config.agent;
  const socket = await serveOnSocket(context, { path, group });
  return {
    context,
    [Symbol.asyncDispose]: async () => {
      await background.settled();
      closing.abort();
      await socket[Symbol.asyncDispose]();
      await events[Symbol.asyncDispose]();
    },
  };
}
