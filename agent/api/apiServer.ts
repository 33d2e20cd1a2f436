import { Server } from '@grpc/grpc-js';
import { HealthService } from '../../proto/generated/grpc/health/v1/health.ts';
import { ServerReflectionService } from '../../proto/generated/grpc/reflection/v1/reflection.ts';
import { AgentService } from '../../proto/generated/stillpoint/v1/agent.ts';
import { agentService } from './agentService.ts';
import { type CallerOf, callRules } from './callRules.ts';
import type { ApiContext } from './context.ts';
import { healthService } from './health.ts';
import { reflectionService } from './reflection.ts';

/** A longer message is refused, in either direction. */
export const messageBytesMax = 4 * 1024 * 1024;
/** Calls and streams at a time on one connection. */
const streamsMax = 64;

const served = ['stillpoint.v1.Agent', 'grpc.health.v1.Health', 'grpc.reflection.v1.ServerReflection'];

/**
 * A gRPC server with all services of the agent. It listens nowhere yet: its listener gives it connections, or binds it
 * with credentials, and says who calls.
 */
export function createApiServer(context: ApiContext, callerOf: CallerOf): Server {
  const { log, closing, ending } = context;
  const parts = { log, closing, callerOf };
  const server = new Server({
    interceptors: [callRules(callerOf)],
    'grpc.max_receive_message_length': messageBytesMax,
    'grpc.max_send_message_length': messageBytesMax,
    'grpc.max_concurrent_streams': streamsMax,
    // A client that is gone without a word is noticed within a minute and a half.
    'grpc.keepalive_time_ms': 60_000,
    'grpc.keepalive_timeout_ms': 20_000,
    'grpc.enable_channelz': 0,
  });
  server.addService(AgentService, agentService(context, callerOf));
  server.addService(HealthService, healthService(parts, ending));
  server.addService(ServerReflectionService, reflectionService(served));
  return server;
}
