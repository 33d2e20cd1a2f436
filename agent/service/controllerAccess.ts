import type { X509Certificate } from 'node:crypto';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import { type ConnectionInjector, type Server, ServerCredentials } from '@grpc/grpc-js';
import { parseHostPort } from '../../common/hostPort.ts';
import type { Logger } from '../../common/log.ts';
import { peerNameOf } from '../../common/tls/peerName.ts';
import { TlsListener } from '../../common/tls/tlsListener.ts';
import type { AgentConfig } from '../../config/schema.ts';
import { askForRevoked, renewIdentity } from '../enrolment/joining.ts';
import type { KeptIdentity } from '../identity/identity.ts';
import { IdentityKeeper } from '../identity/identityKeeper.ts';
import { IdentityStore } from '../identity/identityStore.ts';

/** Makes the server of one connection, for a controller of this name: so a call belongs to who has connected. */
export type ServerFor = (controller: string) => Server;

/** The directory of the host's keys and certificates. */
export function identityDirectory(stateDir: string): string {
  return join(stateDir, 'identity');
}

/** A controller needs one. */
const maxConnections = 64;
/** Calls that are under way when the service ends have so long. */
const drainMs = 5_000;

/**
 * The part of the service that belongs to the controller of the host: keeps the host's certificate in force, and lets
 * the controller call the API over the network where `agent.listen` says so. A host that has not joined does neither,
 * until it has.
 *
 * @param api what the controller may call
 * @param options.onLook the identity, and what is revoked, may be others than before
 */
export async function keepControllerAccess(
  api: ServerFor,
  { stateDir, listen }: Pick<AgentConfig, 'stateDir' | 'listen'>,
  {
    log,
    signal,
    onLook,
  }: { readonly log: Logger; readonly signal: AbortSignal; readonly onLook?: (() => void) | undefined },
): Promise<void> {
  const store = new IdentityStore(identityDirectory(stateDir));
  await using listener = listen === null ? null : new ControllerListener(api, listen, log);
  await new IdentityKeeper({
    store,
    renew: (identity) => renewIdentity(store, identity, new Date()),
    listRevoked: (identity) => askForRevoked(store, identity),
    onLook: async (identity, revoked) => {
      onLook?.();
      await listener?.follow(identity, revoked);
    },
    onLeft: async () => {
      onLook?.();
      await listener?.leave();
    },
    log,
  }).run(signal);
}

/** Listens for the controller of a host with the host's certificate, whichever is in force. */
export class ControllerListener implements AsyncDisposable {
  readonly #api: ServerFor;
  readonly #connections = new Set<ConnectionInjector>();
  readonly #listen: string;
  readonly #log: Logger;
  #listener: TlsListener | null = null;
  #generation = 0;
  #port: number | null = null;
  /** null: it is not known. */
  #revoked: ReadonlySet<string> | null = null;

  /** @param listen `HOST:PORT` */
  constructor(api: ServerFor, listen: string, log: Logger) {
    this.#api = api;
    this.#listen = listen;
    this.#log = log;
    log.info({ listen }, 'the API can be called by a controller as soon as this host has joined it');
  }

  /**
   * Goes by this identity and these revocations from now on. Connections that are open stay, unless their certificates
   * do not count any more. Throws the system's errors when it cannot listen; the next call tries again.
   * @param revoked null: it is not known, so nobody is let in
   */
  async follow(identity: KeptIdentity, revoked: ReadonlySet<string> | null): Promise<void> {
    this.#revoked = revoked;
    if (this.#listener === null) this.#listener = await this.#begin(identity);
    else if (identity.generation !== this.#generation) this.#listener.replaceMaterial(identity);
    this.#generation = identity.generation;
    this.#listener.review();
  }

  /** Where it listens, `null` before it does. */
  get port(): number | null {
    return this.#port;
  }

  /** Lets nobody in any more, until it follows an identity again. */
  async leave(): Promise<void> {
    const listener = this.#listener;
    if (listener === null) return;
    this.#listener = null;
    this.#port = null;
    for (const connection of this.#connections) connection.drain(drainMs);
    await listener.close(drainMs);
    this.#log.info({ listen: this.#listen }, 'the API does not listen for a controller any more');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.leave();
  }

  async #begin(identity: KeptIdentity): Promise<TlsListener> {
    const listener = new TlsListener({
      material: identity,
      judge: (certificate) => {
        if (certificate === null) return 'it shows no certificate';
        if (peerNameOf(certificate)?.role !== 'controller')
          return `it is no controller: ${certificate.subjectAltName ?? 'it names nobody'}`;
        const { serialNumber } = certificate;
        if (this.#revoked === null) return 'it is not known which certificates were revoked';
        return this.#revoked.has(serialNumber) ? `certificate ${serialNumber} was revoked` : null;
      },
      maxConnections,
      accept: (socket, certificate) => this.#accept(socket, certificate),
      refused: (peer, reason) => this.#log.warn({ peer, reason }, 'a connection to the API was refused'),
    });
    this.#port = await listener.listen(parseHostPort(this.#listen));
    this.#log.info({ listen: this.#listen, port: this.#port }, 'the API listens for the controller');
    return listener;
  }

  #accept(socket: TLSSocket, certificate: X509Certificate | null): void {
    const name = certificate === null ? null : peerNameOf(certificate);
    if (name === null) throw new Error('who was let in has a name');
    // TLS is done by the listener: what it hands over is plain to gRPC.
    const connection = this.#api(name.id).createConnectionInjector(ServerCredentials.createInsecure());
    this.#connections.add(connection);
    socket.once('close', () => this.#connections.delete(connection));
    connection.injectConnection(socket);
  }
}
