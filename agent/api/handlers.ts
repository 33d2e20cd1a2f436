import { once } from 'node:events';
import type {
  handleServerStreamingCall,
  handleUnaryCall,
  ServerUnaryCall,
  ServerWritableStream,
} from '@grpc/grpc-js';
import { StillpointError } from '../../common/errors.ts';
import { JoinedSignal } from '../../common/joinedSignal.ts';
import type { Logger } from '../../common/log.ts';
import type { CallerOf } from './callRules.ts';
import type { ApiCall } from './context.ts';
import { failedCall } from './grpcErrors.ts';

/** What turns functions of ours into handlers of grpc-js. */
export interface HandlerParts {
  readonly log: Logger;
  readonly callerOf: CallerOf;
  /** Aborted when streams are to end. */
  readonly closing: AbortSignal;
}

/** A call with one answer. */
export function unary<Request, Response>(
  parts: HandlerParts,
  answer: (request: Request, call: ApiCall) => Promise<Response> | Response,
): handleUnaryCall<Request, Response> {
  return (call, callback) => {
    const work = async (): Promise<void> => {
      // The service closes long after the call.
      using joined = new JoinedSignal([goneSignal(call), parts.closing]);
      try {
        callback(null, await answer(call.request, apiCall(parts, call, joined.signal)));
      } catch (error) {
        tell(parts.log, call.getPath(), error);
        callback(failedCall(error));
      }
    };
    void work();
  };
}

/**
 * A call with a stream of answers, as fast as they are read.
 * @param answer throws SERVICE_ENDING when its signal aborts before it has told everything
 */
export function streaming<Request, Response>(
  parts: HandlerParts,
  answer: (request: Request, call: ApiCall) => AsyncIterable<Response>,
): handleServerStreamingCall<Request, Response> {
  return (call) => {
    const work = async (): Promise<void> => {
      const gone = goneSignal(call);
      using joined = new JoinedSignal([gone, parts.closing]);
      try {
        for await (const response of answer(call.request, apiCall(parts, call, joined.signal))) {
          if (gone.aborted) return;
          if (!call.write(response)) await drained(call, gone);
        }
        call.end();
      } catch (error) {
        tell(parts.log, call.getPath(), error);
        call.emit('error', failedCall(error));
      }
    };
    void work();
  };
}

type AnyCall = ServerUnaryCall<unknown, unknown> | ServerWritableStream<unknown, unknown>;

/** Aborts when nobody waits for an answer any more. */
function goneSignal(call: AnyCall): AbortSignal {
  const gone = new AbortController();
  if (call.cancelled) gone.abort();
  call.on('cancelled', () => gone.abort());
  return gone.signal;
}

function apiCall({ callerOf }: HandlerParts, call: AnyCall, signal: AbortSignal): ApiCall {
  return { caller: callerOf(call), signal };
}

async function drained(call: ServerWritableStream<unknown, unknown>, signal: AbortSignal): Promise<void> {
  try {
    await once(call, 'drain', { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** What is refused is the caller's matter; a fault of ours is told where somebody looks for it. */
function tell(log: Logger, path: string, error: unknown): void {
  if (error instanceof StillpointError) log.debug({ path, err: error }, 'call failed');
  else log.error({ path, err: error }, 'call failed for an unforeseen reason');
}
