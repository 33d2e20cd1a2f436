import { join } from 'node:path';
import { promisify } from 'node:util';
import { logVerbosity, Server, ServerCredentials, type ServerOptions, setLogVerbosity } from '@grpc/grpc-js';
import { Report, type ReportHello, ReportServiceService } from '../proto/generated/stillpoint/v1/report.ts';
import { messageOf } from '../common/errors.ts';
import { formatHostPort, type HostPort, isLoopbackHost, parseHostPort } from '../common/hostPort.ts';
import { createLogger, type Logger } from '../common/log.ts';
import type { CertificateAuthority } from './ca.ts';
import { hostIdOf } from './enrolmentService.ts';
import { HostListener, type HostListenerOptions } from './hostListener.ts';
import { type DeliverCall, Receiver } from './receiver.ts';
import { ReceiverError } from './receiverError.ts';
import { type Gap, ReportStore, type StoredReport } from './reportStore.ts';

const serverOptions: ServerOptions = {
  'grpc.max_receive_message_length': 4 * 1024 * 1024,
  'grpc.max_concurrent_streams': 16,
  // A host that went away without a word is noticed.
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 10_000,
};

export interface StubOptions {
  /** Where it keeps what it has received; made where it is missing. */
  readonly directory: string;
  /** HOST:PORT; port 0 is any that is free. */
  readonly listen: string;
  /** Hosts show certificates of it, and can join; null: only this host is listened to, without certificates. */
  readonly ca?: CertificateAuthority | undefined;
  readonly log?: Logger | undefined;
  readonly onReport?: ((report: StoredReport) => void) | undefined;
  readonly onGap?: ((gap: Gap) => void) | undefined;
  readonly onFault?: ((host: string | null, error: unknown) => void) | undefined;
}

/** A receiver of reports that is listening. */
export interface Stub extends AsyncDisposable {
  /** HOST:PORT at which it is. */
  readonly address: string;
}

/**
 * Listens for reports, stores them, and does nothing with them: a reference for what a controller answers.
 * @throws ReceiverError
 */
export async function openStub(options: StubOptions): Promise<Stub> {
  const { directory, listen, ca, log = createLogger({ level: 'silent' }) } = options;
  const { host } = addressOf(listen);
  if (ca === undefined && !isLoopbackHost(host))
    throw new ReceiverError('CANNOT_LISTEN', `without certificates nobody listens on ${listen}`, {
      hint: 'choose an address of this host alone, such as 127.0.0.1:9774, or --tls',
    });
  const store = new ReportStore(join(directory, 'reports.sqlite'));
  const receiver = new Receiver({
    store,
    onTaken: ({ stored, gaps }) => {
      for (const gap of gaps) options.onGap?.(gap);
      for (const report of stored) options.onReport?.(report);
    },
    onFault: options.onFault,
    ...(ca === undefined ? {} : { refusalOf: foreignReports }),
  });
  // What it would print is in our errors.
  setLogVerbosity(logVerbosity.NONE);
  const server = new Server(serverOptions);
  server.addService(ReportServiceService, receiver.service);
  try {
    const hosts = ca === undefined ? undefined : await listenForHosts({ ca, listen, server, log });
    const port = hosts?.port ?? (await bind(server, listen));
    return {
      address: formatHostPort({ host, port }),
      [Symbol.asyncDispose]: async () => {
        receiver[Symbol.dispose]();
        await hosts?.close();
        server.forceShutdown();
        store[Symbol.dispose]();
      },
    };
  } catch (error) {
    store[Symbol.dispose]();
    throw error;
  }
}

/** A host tells of itself only. */
function foreignReports(call: DeliverCall, { hostId }: ReportHello): string | null {
  const certified = hostIdOf(call);
  return certified === hostId
    ? null
    : `these are reports of ${hostId}, and the certificate is of ${certified}`;
}

async function listenForHosts({
  listen,
  ...options
}: Omit<HostListenerOptions, 'listen'> & { readonly listen: string }): Promise<HostListener> {
  try {
    return await HostListener.open({ ...options, listen: parseHostPort(listen) });
  } catch (error) {
    throw cannotListen(listen, error);
  }
}

async function bind(server: Server, listen: string): Promise<number> {
  try {
    return await promisify(server.bindAsync.bind(server))(listen, ServerCredentials.createInsecure());
  } catch (error) {
    throw cannotListen(listen, error);
  }
}

function addressOf(listen: string): HostPort {
  try {
    return parseHostPort(listen);
  } catch (error) {
    throw cannotListen(listen, error);
  }
}

function cannotListen(listen: string, error: unknown): ReceiverError {
  return new ReceiverError('CANNOT_LISTEN', `nobody can listen on ${listen}: ${messageOf(error)}`, {
    hint: `ss -ltnp shows who does`,
    cause: error,
  });
}

/** A report as one line of JSON has it. */
export function reportJson({ arrival, host, generation, receivedAtMs, report }: StoredReport): unknown {
  const kind = report.body?.$case ?? 'unknown';
  const fields: unknown = Report.toJSON(report);
  const body = isRecord(fields) ? (fields[kind] ?? {}) : {};
  return {
    arrival,
    host,
    generation,
    sequence: Number(report.sequence),
    id: report.id,
    time: report.time?.toISOString() ?? null,
    receivedAt: new Date(receivedAtMs).toISOString(),
    kind,
    body,
  };
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null;
}
