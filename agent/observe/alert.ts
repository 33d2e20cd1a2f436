import * as z from 'zod';
import { alertEvents } from '../../config/observability.ts';

/** An alert as it is kept. */
export const alertSchema = z.object({
  /** UUIDv7; the same when it is told again, and when it is over. */
  id: z.uuid(),
  /** What is wrong, and of what. */
  key: z.string(),
  event: z.enum(alertEvents),
  severity: z.enum(['warning', 'critical']),
  machine: z.object({ uuid: z.string(), name: z.string() }).nullable(),
  storage: z.string().nullable(),
  jobId: z.string().nullable(),
  message: z.string(),
  hint: z.string(),
  startedAtMs: z.number(),
});

/** Something that is wrong, since when, and under an id. */
export type Alert = z.infer<typeof alertSchema>;

/** What a webhook is told. */
export const noticeSchema = z.object({
  /** `firing`: it is wrong, or worse than told before. `resolved`: it is right again. */
  status: z.enum(['firing', 'resolved']),
  alert: alertSchema,
  atMs: z.number(),
});

/** That an alert has begun, has become worse, or is over. */
export type Notice = z.infer<typeof noticeSchema>;

/** Version of the body that is sent; keys may be added without another one. */
const bodyVersion = 1;

/** The body of a request to a webhook, as docs/METRICS.md shows it. */
export function bodyOf({ status, alert, atMs }: Notice, host: string): string {
  const { id, event, severity, machine, storage, jobId, message, hint, startedAtMs } = alert;
  return JSON.stringify({
    version: bodyVersion,
    id,
    status,
    event,
    severity,
    host,
    machine,
    storage,
    jobId,
    message,
    hint,
    startedAt: new Date(startedAtMs).toISOString(),
    endedAt: status === 'resolved' ? new Date(atMs).toISOString() : null,
  });
}
