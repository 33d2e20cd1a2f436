import {
  ResponderBuilder,
  type ServerInterceptingCallInterface,
  ServerInterceptingCall,
  type ServerInterceptor,
  ServerListenerBuilder,
  type ServerUnaryCall,
  status,
} from '@grpc/grpc-js';
import type { Caller } from './caller.ts';
import { ApiError } from './errors.ts';
import { failedCall } from './grpcErrors.ts';
import { shortenLongTimeouts } from './longTimeouts.ts';

/** What of a call tells who makes it, where that is not known from its connection. */
export type Connection = Pick<ServerUnaryCall<unknown, unknown>, 'getAuthContext'>;

/** Who makes a call. @throws ApiError CALLER_DENIED */
export type CallerOf = (connection: Connection) => Caller;

export interface Deadlines {
  /** Of a call that has none. */
  readonly defaultMs: number;
  readonly maxMs: number;
}

export const deadlines: Deadlines = { defaultMs: 60_000, maxMs: 600_000 };

/** A client and a server do not begin to count at the same moment. */
const slackMs = 1000;

/**
 * What holds for every call, whatever it asks for: its caller is known and let in, and unless it is a stream it ends
 * within its deadline.
 */
export function callRules(
  callerOf: CallerOf,
  { defaultMs, maxMs }: Deadlines = deadlines,
): ServerInterceptor {
  // The deadline that is looked at here is the one that was asked for, or one that is too long all the same.
  shortenLongTimeouts();
  return (method, call) => {
    const isStream = method.requestStream || method.responseStream;
    let timer: NodeJS.Timeout | undefined;
    const stop = (): void => clearTimeout(timer);
    const listener = new ServerListenerBuilder()
      .withOnReceiveMetadata((metadata, next) => {
        const refusal = refusalOf(call, callerOf, isStream ? Number.POSITIVE_INFINITY : maxMs);
        if (refusal !== undefined) {
          call.sendStatus(failedCall(refusal));
          return;
        }
        if (!isStream && remainingMs(call) === Number.POSITIVE_INFINITY)
          timer = setTimeout(() => call.sendStatus(timeIsOver(defaultMs)), defaultMs);
        next(metadata);
      })
      .withOnCancel(stop)
      .build();
    const responder = new ResponderBuilder()
      .withStart((next) => next(listener))
      .withSendStatus((ending, next) => {
        stop();
        next(ending);
      })
      .build();
    return new ServerInterceptingCall(call, responder);
  };
}

function refusalOf(call: ServerInterceptingCallInterface, callerOf: CallerOf, maxMs: number): unknown {
  try {
    callerOf(call);
  } catch (error) {
    return error;
  }
  if (remainingMs(call) <= maxMs + slackMs || remainingMs(call) === Number.POSITIVE_INFINITY)
    return undefined;
  return new ApiError('DEADLINE_TOO_LONG', `a call may last ${maxMs / 1000} s at the most`, {
    hint: 'ask for less time; what takes long is a job, which is followed by WatchJob',
  });
}

function remainingMs(call: ServerInterceptingCallInterface): number {
  const deadline = call.getDeadline();
  return (deadline instanceof Date ? deadline.getTime() : deadline) - Date.now();
}

function timeIsOver(ms: number): { readonly code: status; readonly details: string } {
  return { code: status.DEADLINE_EXCEEDED, details: `there was no answer within ${ms / 1000} s` };
}
