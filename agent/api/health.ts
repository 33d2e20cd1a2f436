import { status } from '@grpc/grpc-js';
import {
  type HealthCheckResponse,
  HealthCheckResponse_ServingStatus as ServingStatus,
  type HealthServer,
} from '../../proto/generated/grpc/health/v1/health.ts';
import { type HandlerParts, streaming } from './handlers.ts';
import { serviceEnding } from './startedBackups.ts';
import { Wake } from './wake.ts';

const known: ReadonlySet<string> = new Set(['', 'stillpoint.v1.Agent']);
/** A watcher is woken by what it waits for. */
const foreverMs = 3_600_000;

/**
 * The health service: SERVING until the service begins nothing new any more.
 * @param ending aborted then
 */
export function healthService(parts: HandlerParts, ending: AbortSignal): HealthServer {
  const now = (service: string): HealthCheckResponse => {
    if (!known.has(service)) return { status: ServingStatus.SERVICE_UNKNOWN };
    return { status: ending.aborted ? ServingStatus.NOT_SERVING : ServingStatus.SERVING };
  };
  return {
    check: ({ request: { service } }, callback) => {
      if (known.has(service)) callback(null, now(service));
      else callback({ code: status.NOT_FOUND, details: `there is no service "${service}"` });
    },
    watch: streaming(parts, async function* watch({ service }, { signal }) {
      yield now(service);
      const wake = new Wake();
      const up = (): void => wake.up();
      ending.addEventListener('abort', up, { once: true });
      try {
        while (!signal.aborted && !ending.aborted) await wake.sleep(foreverMs, signal);
        if (ending.aborted) yield now(service);
        while (!signal.aborted) await wake.sleep(foreverMs, signal);
        throw serviceEnding();
      } finally {
        ending.removeEventListener('abort', up);
      }
    }),
  };
}
