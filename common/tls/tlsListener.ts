import type { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { createServer, type Server, type TLSSocket } from 'node:tls';
import type { HostPort } from '../hostPort.ts';
import { secureContextOptions, type TlsMaterial, validityProblem } from './material.ts';

export interface TlsListenerOptions {
  readonly material: TlsMaterial;
  /**
   * What there is against a peer whose certificate is from one of our CAs and valid now; `null` for one without a
   * certificate. Returns why it is refused, or `null`.
   */
  readonly judge: (certificate: X509Certificate | null) => string | null;
  /** Takes over a connection that carries HTTP/2. */
  readonly accept: (socket: TLSSocket, certificate: X509Certificate | null) => void;
  /** Those beyond it are refused: descriptors are for work, too. */
  readonly maxConnections: number;
  /** A connection was refused, or ended because its peer is not acceptable any more. */
  readonly refused: (peer: string, reason: string) => void;
}

/** Who says nothing for so long after connecting is dropped. */
const handshakeTimeoutMs = 10_000;

/**
 * Listens for HTTP/2 over TLS 1.3 and lets in only peers with a certificate that is acceptable, or none where that is
 * acceptable. Material can be replaced while connections are open: they go on with what they began with.
 */
export class TlsListener {
  readonly #options: TlsListenerOptions;
  readonly #server: Server;
  readonly #open = new Map<TLSSocket, X509Certificate | null>();
  /** Those below TLS, also before their handshake. */
  readonly #connected = new Set<Socket>();

  constructor(options: TlsListenerOptions) {
    this.#options = options;
    this.#server = createServer({
      ...secureContextOptions(options.material),
      requestCert: true,
      // Node.js would end the connection without a word; `#enter` does it and says why.
      rejectUnauthorized: false,
      ALPNProtocols: ['h2'],
      handshakeTimeout: handshakeTimeoutMs,
    });
    this.#server.maxConnections = options.maxConnections;
    this.#server.on('connection', (socket: Socket) => {
      this.#connected.add(socket);
      socket.once('close', () => this.#connected.delete(socket));
    });
    this.#server.on('secureConnection', (socket) => this.#enter(socket));
    this.#server.on('tlsClientError', ({ message }, socket) => options.refused(peerOf(socket), message));
    this.#server.on('drop', (dropped) =>
      options.refused(dropped?.remoteAddress ?? 'unknown', `there are ${options.maxConnections} connections`),
    );
  }

  /**
   * Begins to listen. Throws the system's errors, such as EADDRINUSE.
   * @returns the port, for where any free one was asked for
   */
  async listen({ host, port }: HostPort): Promise<number> {
    this.#server.listen({ host, port });
    await once(this.#server, 'listening');
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : port;
  }

  /** New connections see this; those that are open go on. */
  replaceMaterial(material: TlsMaterial): void {
    this.#server.setSecureContext(secureContextOptions(material));
  }

  /** Looks again at the peers of all open connections: certificates expire and are revoked meanwhile. */
  review(): void {
    for (const [socket, certificate] of this.#open) {
      const reason = this.#problemOf(certificate);
      if (reason !== null) this.#refuse(socket, reason);
    }
  }

  /**
   * Ends listening, and every connection.
   * @param graceMs connections may end by themselves for so long
   */
  async close(graceMs = 0): Promise<void> {
    if (!this.#server.listening) return;
    const closed = once(this.#server, 'close');
    this.#server.close();
    const end = setTimeout(() => {
      for (const socket of [...this.#open.keys(), ...this.#connected]) socket.destroy();
    }, graceMs);
    await closed;
    clearTimeout(end);
  }

  #enter(socket: TLSSocket): void {
    const certificate = socket.getPeerX509Certificate() ?? null;
    const reason = this.#reasonAgainst(socket, certificate);
    if (reason !== null) {
      this.#refuse(socket, reason);
      return;
    }
    this.#open.set(socket, certificate);
    socket.once('close', () => this.#open.delete(socket));
    this.#options.accept(socket, certificate);
  }

  #reasonAgainst(socket: TLSSocket, certificate: X509Certificate | null): string | null {
    if (socket.alpnProtocol !== 'h2') return 'it does not speak HTTP/2';
    if (certificate !== null && !socket.authorized) {
      const dates = validityProblem(certificate, new Date());
      return dates === null
        ? `its certificate is from none of our CAs (${String(socket.authorizationError)})`
        : `its certificate ${dates}`;
    }
    return this.#problemOf(certificate);
  }

  #problemOf(certificate: X509Certificate | null): string | null {
    const dates = certificate === null ? null : validityProblem(certificate, new Date());
    return dates === null ? this.#options.judge(certificate) : `its certificate ${dates}`;
  }

  #refuse(socket: TLSSocket, reason: string): void {
    this.#options.refused(peerOf(socket), reason);
    socket.destroy();
  }
}

function peerOf({ remoteAddress, remotePort }: TLSSocket): string {
  return remoteAddress === undefined ? 'unknown' : `${remoteAddress} port ${remotePort}`;
}
