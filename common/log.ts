import { pino } from 'pino';
import type { Bindings, DestinationStream, Logger } from 'pino';

export type { Logger } from 'pino';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

/** Keys whose values never reach a log, at the top and one or two levels down. */
const secretKeys = ['password', 'passphrase', 'secret', 'token', 'key', 'credentials', 'definition', 'xml'];

/** What a log line is about; every line of the child logger carries it. */
export interface LogBindings extends Bindings {
  readonly jobId?: string;
  readonly machine?: string;
}

/** Where log lines go; a log that cannot be written (a full disk) must not end the work that it tells of. */
function standardError(): DestinationStream {
  const destination = pino.destination({ dest: 2, sync: true });
  destination.on('error', () => undefined);
  return destination;
}

/**
 * The logger of a process: JSON lines on stderr (stdout belongs to a command's result), secrets taken out.
 * Domain definitions may hold passwords (`<graphics passwd=…>`) and count as secrets.
 *
 * @param options.level the environment's STILLPOINT_LOG wins over it; `info` unless told.
 */
export function createLogger(
  options: {
    readonly level?: LogLevel | undefined;
    readonly destination?: DestinationStream | undefined;
  } = {},
): Logger {
  const wanted = process.env['STILLPOINT_LOG'] ?? options.level ?? 'info';
  const level = logLevels.find((known) => known === wanted) ?? 'info';
  const logger = pino(
    {
      level,
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      redact: { paths: secretKeys.flatMap((key) => [key, `*.${key}`, `*.*.${key}`]), censor: '[secret]' },
    },
    options.destination ?? standardError(),
  );
  if (level !== wanted) logger.warn({ level: wanted }, `STILLPOINT_LOG is none of ${logLevels.join(', ')}`);
  return logger;
}
