import { DatabaseSync } from 'node:sqlite';
import type { PeerName } from '../common/tls/peerName.ts';
import { CaError } from './caErrors.ts';

/** A certificate that was given out. */
export interface CertificateRecord extends PeerName {
  /** Hexadecimal digits, upper case. */
  readonly serial: string;
  /** PEM. */
  readonly certificate: string;
  /** SHA-256 of the request that it answers; `null` where there was none. */
  readonly requestHash: string | null;
  readonly notAfter: Date;
}

/** What is asked for with a token. Only hashes of tokens and requests are kept. */
export interface Redemption {
  readonly tokenHash: string;
  readonly requestHash: string;
  readonly hostId: string;
  readonly now: Date;
}

const tables = `
  CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    id TEXT NOT NULL,
    certificate TEXT NOT NULL,
    request_hash TEXT,
    not_after_ms INTEGER NOT NULL,
    revoked_at_ms INTEGER
  ) STRICT;
  CREATE TABLE IF NOT EXISTS tokens (
    hash TEXT PRIMARY KEY,
    host_id TEXT,
    expires_at_ms INTEGER NOT NULL,
    serial TEXT REFERENCES certificates (serial)
  ) STRICT;
`;

/** What a CA has given out, durably. Several processes may have it open: one that serves, one that makes tokens. */
export class CaRecords implements Disposable {
  readonly #db: DatabaseSync;

  constructor(path: string) {
    this.#db = new DatabaseSync(path, { timeout: 10_000 });
    this.#db.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; ${tables}`);
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }

  addToken(hash: string, hostId: string | null, expiresAt: Date): void {
    this.#db
      .prepare('INSERT INTO tokens (hash, host_id, expires_at_ms) VALUES (?, ?, ?)')
      .run(hash, hostId, expiresAt.getTime());
  }

  add(record: CertificateRecord): void {
    const { serial, role, id, certificate, requestHash, notAfter } = record;
    this.#db
      .prepare(
        'INSERT INTO certificates (serial, role, id, certificate, request_hash, not_after_ms) VALUES (?, ?, ?, ?, ?, ?)',
      )
      .run(serial, role, id, certificate, requestHash, notAfter.getTime());
  }

  /**
   * Whether a token can be used for this request: `null`, or the certificate with which the same request was answered
   * before.
   * @throws CaError TOKEN_UNKNOWN, TOKEN_EXPIRED, TOKEN_USED, TOKEN_OF_ANOTHER_HOST, HOST_ENROLLED
   */
  look({ tokenHash, requestHash, hostId, now }: Redemption): string | null {
    const token = this.#db.prepare('SELECT * FROM tokens WHERE hash = ?').get(tokenHash);
    if (token === undefined) throw new CaError('TOKEN_UNKNOWN', 'the token is not known');
    if (Number(token['expires_at_ms']) < now.getTime())
      throw new CaError('TOKEN_EXPIRED', 'the token has expired');
    const boundTo = token['host_id'];
    if (boundTo !== null && boundTo !== hostId)
      throw new CaError('TOKEN_OF_ANOTHER_HOST', `the token is for another host than ${hostId}`);
    if (token['serial'] !== null) return this.#answered(String(token['serial']), requestHash, hostId);
    if (boundTo === null && this.#isEnrolled(hostId, now))
      throw new CaError('HOST_ENROLLED', `a host with the identifier ${hostId} has joined already`);
    return null;
  }

  /**
   * Uses up a token for a certificate, in one transaction: of two who come at the same time, one wins. Where the token
   * is for a host that has joined before, the certificates that it had do not count any more.
   * @returns the certificate that counts: this one, or that with which another process has answered the same request
   * @throws as `look`
   */
  redeem(redemption: Redemption, record: CertificateRecord): string {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      const answered = this.look(redemption);
      if (answered === null) {
        this.revokeHost(record.id, redemption.now);
        this.add(record);
        this.#db
          .prepare('UPDATE tokens SET serial = ? WHERE hash = ?')
          .run(record.serial, redemption.tokenHash);
      }
      this.#db.exec('COMMIT');
      return answered ?? record.certificate;
    } catch (error) {
      // SQLite rolls back by itself on some errors; the first error is the one to tell.
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
      throw error;
    }
  }

  /** The certificate with which a request of this host was answered, unless it was revoked. */
  findAnswer(hostId: string, requestHash: string): string | null {
    const row = this.#db
      .prepare(
        "SELECT certificate FROM certificates WHERE role = 'host' AND id = ? AND request_hash = ? AND revoked_at_ms IS NULL",
      )
      .get(hostId, requestHash);
    return row === undefined ? null : String(row['certificate']);
  }

  /** False also for a serial number that this CA has never given out. */
  isGood(serial: string): boolean {
    const row = this.#db.prepare('SELECT revoked_at_ms FROM certificates WHERE serial = ?').get(serial);
    return row !== undefined && row['revoked_at_ms'] === null;
  }

  /** @returns how many certificates are revoked by this */
  revokeHost(hostId: string, now: Date): number {
    return Number(
      this.#db
        .prepare(
          "UPDATE certificates SET revoked_at_ms = ? WHERE role = 'host' AND id = ? AND revoked_at_ms IS NULL",
        )
        .run(now.getTime(), hostId).changes,
    );
  }

  /** @returns how many certificates are revoked by this: 1, or 0 */
  revoke(serial: string, now: Date): number {
    return Number(
      this.#db
        .prepare('UPDATE certificates SET revoked_at_ms = ? WHERE serial = ? AND revoked_at_ms IS NULL')
        .run(now.getTime(), serial).changes,
    );
  }

  /** Serial numbers of revoked certificates of controllers that have not expired. */
  revokedControllers(now: Date): readonly string[] {
    return this.#db
      .prepare(
        "SELECT serial FROM certificates WHERE role = 'controller' AND revoked_at_ms IS NOT NULL AND not_after_ms >= ?",
      )
      .all(now.getTime())
      .map((row) => String(row['serial']));
  }

  #answered(serial: string, requestHash: string, hostId: string): string {
    const row = this.#db
      .prepare('SELECT certificate FROM certificates WHERE serial = ? AND request_hash = ? AND id = ?')
      .get(serial, requestHash, hostId);
    if (row === undefined) throw new CaError('TOKEN_USED', 'the token was used already');
    return String(row['certificate']);
  }

  #isEnrolled(hostId: string, now: Date): boolean {
    const row = this.#db
      .prepare(
        "SELECT 1 FROM certificates WHERE role = 'host' AND id = ? AND revoked_at_ms IS NULL AND not_after_ms >= ?",
      )
      .get(hostId, now.getTime());
    return row !== undefined;
  }
}
