import { type ConnectionInjector, Server, ServerCredentials } from '@grpc/grpc-js';
import type { HostPort } from '../common/hostPort.ts';
import type { Logger } from '../common/log.ts';
import { peerNameOf } from '../common/tls/peerName.ts';
import { TlsListener } from '../common/tls/tlsListener.ts';
import { EnrolmentServiceService } from '../proto/generated/stillpoint/v1/enrolment.ts';
import type { CertificateAuthority } from './ca.ts';
import { enrolmentService } from './enrolmentService.ts';
import { pause } from '../common/wake.ts';

export interface HostListenerOptions {
  readonly ca: CertificateAuthority;
  readonly listen: HostPort;
  /** What hosts may call; the enrolment is added to it. Each call comes from a host: `hostIdOf`. */
  readonly server: Server;
  readonly log: Logger;
}

/** Each host has one or two. */
const maxConnections = 16_384;
/** A host that joins has one call to make. */
const joiningConnectionMs = 60_000;
const joiningMessageBytes = 64 * 1024;
const reviewIntervalMs = 60_000;
/** The certificate of a controller is valid for a week: a new one is made each day. */
const materialIntervalMs = 24 * 3_600_000;

/**
 * Where a controller listens for its hosts. Who has no certificate reaches a server on which there is nothing but the
 * enrolment: what a service forgets to ask cannot let him in.
 */
export class HostListener {
  readonly #listener: TlsListener;
  readonly #injectors: readonly ConnectionInjector[];
  readonly #ca: CertificateAuthority;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #upkeep: Promise<void>;
  readonly port: number;

  private constructor(
    listener: TlsListener,
    injectors: readonly ConnectionInjector[],
    { ca, log }: HostListenerOptions,
    port: number,
  ) {
    this.#listener = listener;
    this.#injectors = injectors;
    this.#ca = ca;
    this.#log = log;
    this.port = port;
    this.#upkeep = this.#keepUp();
  }

  /** Begins to listen. Throws the system's errors. */
  static async open(options: HostListenerOptions): Promise<HostListener> {
    const { ca, listen, server, log } = options;
    const enrolment = enrolmentService(ca, log);
    const joining = new Server({
      'grpc.max_receive_message_length': joiningMessageBytes,
      'grpc.max_connection_age_ms': joiningConnectionMs,
      'grpc.max_connection_age_grace_ms': joiningConnectionMs,
    });
    for (const each of [server, joining]) each.addService(EnrolmentServiceService, enrolment);
    const [forHosts, forJoining] = [injectorOf(server), injectorOf(joining)];
    const listener = new TlsListener({
      material: ca.controllerMaterial(),
      judge: (certificate) => {
        if (certificate === null) return null;
        const name = peerNameOf(certificate);
        if (name?.role !== 'host') return `it is no host: ${certificate.subjectAltName ?? 'it names nobody'}`;
        return ca.isGood(certificate.serialNumber) ? null : `the certificate of host ${name.id} was revoked`;
      },
      maxConnections,
      accept: (socket, certificate) =>
        (certificate === null ? forJoining : forHosts).injectConnection(socket),
      refused: (peer, reason) => log.warn({ peer, reason }, 'a connection was refused'),
    });
    return new HostListener(listener, [forHosts, forJoining], options, await listener.listen(listen));
  }

  /** Ends the connections of hosts whose certificates were revoked or have expired. */
  review(): void {
    this.#listener.review();
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#upkeep;
    for (const injector of this.#injectors) injector.destroy();
    await this.#listener.close();
  }

  async #keepUp(): Promise<void> {
    const { signal } = this.#stop;
    for (let agedMs = 0; !signal.aborted; agedMs += reviewIntervalMs) {
      try {
        if (agedMs >= materialIntervalMs) {
          this.#listener.replaceMaterial(this.#ca.controllerMaterial());
          agedMs = 0;
        }
        this.review();
      } catch (error) {
        // A full disk, say: the certificate is good for days, and the next attempt is in a minute.
        this.#log.error({ err: error }, 'the controller could not look after its certificate');
      }
      await pause(reviewIntervalMs, signal);
    }
  }
}

/** TLS has been done by our own listener: what it hands over is plain to gRPC. */
function injectorOf(server: Server): ConnectionInjector {
  return server.createConnectionInjector(ServerCredentials.createInsecure());
}
