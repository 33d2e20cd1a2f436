import * as z from 'zod';
import { isLoopbackHost, parseListenAddress } from '../common/hostPort.ts';
import { absolutePath } from './path.ts';

/** What can be wrong on a host, by the names that alerts have. */
export const alertEvents = [
  'backup-failed',
  'copy-failed',
  'job-parked',
  'machine-overdue',
  'storage-full',
  'storage-unusable',
  'verification-failed',
  'libvirt-unreachable',
  'policies-unusable',
] as const;
export type AlertEvent = (typeof alertEvents)[number];

/** Where Prometheus finds the figures of this host. */
export const metrics = z
  .strictObject({
    listen: z
      .string()
      .superRefine((text, context) => {
        try {
          parseListenAddress(text);
        } catch (error) {
          if (!(error instanceof RangeError)) throw error;
          context.addIssue({ code: 'custom', message: error.message });
        }
      })
      .nullable()
      .default(null)
      .describe('The service answers GET /metrics there over HTTP: ADDRESS:PORT. null: nowhere.'),
    allowRemote: z
      .boolean()
      .default(false)
      .describe(
        'true: `listen` may be an address that others reach. Whoever does sees the names of machines and storages.',
      ),
    textfile: absolutePath
      .refine(
        (path) => path.endsWith('.prom'),
        'expected a name that ends in .prom, which node_exporter asks for',
      )
      .nullable()
      .default(null)
      .describe(
        "The service writes them there once a minute, for node_exporter's textfile collector. null: nowhere.",
      ),
  })
  .superRefine(({ listen, allowRemote }, context) => {
    if (listen === null || allowRemote || !isElsewhere(listen)) return;
    context.addIssue({
      code: 'custom',
      path: ['listen'],
      message: 'expected an address of the loopback, such as "127.0.0.1:9777", or allowRemote: true',
    });
  })
  .prefault({})
  .describe('Figures for Prometheus; each is explained in docs/METRICS.md.');

/** What cannot be read is told of by its own check. */
function isElsewhere(listen: string): boolean {
  try {
    return !isLoopbackHost(parseListenAddress(listen).host);
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}

const webhook = z
  .strictObject({
    url: z
      .url({ protocol: /^https?$/, error: 'expected https://HOST/PATH' })
      .describe('Alerts are sent there by POST. It is treated as a secret: logs tell its host only.'),
    secretFile: absolutePath
      .optional()
      .describe(
        'A file that its owner alone can read. With what stands in it each alert is signed: header Stillpoint-Signature.',
      ),
    events: z
      .array(z.enum(alertEvents, { error: `expected some of ${alertEvents.join(', ')}` }))
      .min(1, 'name at least one event, or leave the key out for all of them')
      .optional()
      .describe('Only these; all unless told.'),
    caFile: absolutePath
      .optional()
      .describe('Certificates (PEM) to trust instead of those that come with the program.'),
    allowPlainHttp: z
      .boolean()
      .default(false)
      .describe(
        'true: `url` may be http:// to another host, where anybody on the way reads and changes alerts.',
      ),
  })
  .superRefine(({ url, allowPlainHttp }, context) => {
    const parsed = URL.parse(url);
    if (parsed === null || parsed.protocol === 'https:' || allowPlainHttp || isLoopbackHost(parsed.hostname))
      return;
    context.addIssue({
      code: 'custom',
      path: ['url'],
      message: 'expected https://, or allowPlainHttp: true',
    });
  });

/** Who is told when something is wrong, and when it is right again. */
export const alerts = z
  .strictObject({
    webhooks: z.array(webhook).max(16, 'expected 16 or less').default([]),
    overdueSeconds: z
      .int('expected a whole number, without a unit')
      .positive('expected 1 or more')
      .default(6 * 3600)
      .describe('A machine is overdue when its backup has been due for so long by its schedule. Seconds.'),
  })
  .prefault({})
  .describe('What the service tells by webhook; docs/METRICS.md shows what is sent.');

export type MetricsConfig = z.output<typeof metrics>;
export type AlertsConfig = z.output<typeof alerts>;
export type WebhookConfig = z.output<typeof webhook>;
