import { pino } from 'pino';
import type { DestinationStream, Logger } from 'pino';
import { withoutSecrets } from './redaction.ts';

export type { Logger } from 'pino';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

/** Keys whose values never reach a log, at the top and one or two levels down. */
const secretKeys = ['password', 'passphrase', 'secret', 'token', 'key', 'credentials', 'definition', 'xml'];

/** A machine that a line is about, as every such line names it. */
export interface LoggedMachine {
  readonly machine: string;
  readonly machineUuid: string;
}

/** What a line says that is about a machine. */
export function aboutMachine({
  name,
  uuid,
}: {
  readonly name: string;
  readonly uuid: string;
}): LoggedMachine {
  return { machine: name, machineUuid: uuid };
}

/** Where log lines go; a log that cannot be written (a full disk) must not end the work that it tells of. */
function standardError(): DestinationStream {
  const destination = pino.destination({ dest: 2, sync: true });
  destination.on('error', () => undefined);
  return destination;
}

/**
 * The logger of a process: JSON lines on stderr (stdout belongs to a command's result), secrets taken out.
 * Domain definitions may hold passwords (`<graphics passwd=…>`) and count as secrets. What is known by its form is taken
 * out of texts, too, such as messages of libvirt that quote a definition.
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
      hooks: { streamWrite: withoutSecrets },
      redact: { paths: secretKeys.flatMap((key) => [key, `*.${key}`, `*.*.${key}`]), censor: '[secret]' },
    },
    options.destination ?? standardError(),
  );
  if (level !== wanted) logger.warn({ level: wanted }, `STILLPOINT_LOG is none of ${logLevels.join(', ')}`);
  return logger;
}
