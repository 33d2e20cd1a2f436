import type { Logger } from '../../common/log.ts';
import { IdentityError } from './errors.ts';
import { certificateOf, checkValidity, type KeptIdentity } from './identity.ts';
import type { IdentityStore } from './identityStore.ts';
import { maxRetryDelayMs, renewalDueAt, retryDelayMs } from './renewalTime.ts';
import { pause } from '../../common/wake.ts';

/** What an identity is kept in force with; the controller is asked by other modules. */
export interface IdentityKeeperOptions {
  readonly store: IdentityStore;
  /** Gets the next certificate and puts it into force. */
  readonly renew: (identity: KeptIdentity) => Promise<KeptIdentity>;
  /** Asks the controller which certificates of controllers it has revoked. */
  readonly listRevoked: (identity: KeptIdentity) => Promise<readonly string[]>;
  /**
   * Called after each look with what counts from then on.
   * @param revoked null: it is not known what is revoked, so no controller is to be trusted with anything
   */
  readonly onLook: (identity: KeptIdentity, revoked: ReadonlySet<string> | null) => Promise<void>;
  /** Called after a look that has found that the host has left its controller. */
  readonly onLeft: () => Promise<void>;
  readonly log: Logger;
  readonly now?: () => Date;
  readonly random?: () => number;
}

/** An identity that another process has put into force is seen so soon. */
const lookIntervalMs = 60_000;
const revocationIntervalMs = 3_600_000;
/** A certificate that has not been renewed with so much of its lifetime left is told as an error. */
const urgentFraction = 1 / 10;

/** Keeps the identity of a host in force: renews it in time, follows revocations, sees when the host joins anew. */
export class IdentityKeeper {
  readonly #options: IdentityKeeperOptions;
  readonly #now: () => Date;
  readonly #random: () => number;
  #seen = 0;
  #failures = 0;
  #nextAttemptMs = 0;
  #nextRevocationsMs = 0;
  #isDamageTold = false;

  constructor(options: IdentityKeeperOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => new Date());
    this.#random = options.random ?? Math.random;
  }

  /** Looks again and again, until the signal. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.look();
      } catch (error) {
        // The service outlives it; the next look is in a minute.
        this.#options.log.error({ err: error }, 'the identity of this host cannot be used');
      }
      await pause(lookIntervalMs, signal);
    }
  }

  /** One look: what is due by the clock is done, and what fails is told and tried again later. */
  async look(): Promise<void> {
    const { store, onLook, onLeft, log } = this.#options;
    const identity = await store.current();
    if (identity === null) {
      if (this.#seen > 0) log.info('the host has left its controller');
      this.#seen = 0;
      await onLeft();
      return;
    }
    if (identity.generation !== this.#seen) await this.#begin(identity);
    // First: the next certificate is not to be had from who was revoked.
    const revoked = await this.#followRevocations(identity);
    await onLook(await this.#renewIfDue(identity), revoked);
  }

  async #begin(identity: KeptIdentity): Promise<void> {
    const { store, log } = this.#options;
    this.#seen = identity.generation;
    this.#failures = 0;
    this.#nextAttemptMs = 0;
    this.#nextRevocationsMs = 0;
    const { validToDate } = certificateOf(identity);
    const { controller, generation } = identity;
    log.info(
      { controller, generation, validTo: validToDate },
      'the host has a certificate of its controller',
    );
    try {
      await store.sweep();
    } catch (error) {
      log.warn({ err: error }, 'earlier keys of this host could not be removed');
    }
  }

  async #renewIfDue(identity: KeptIdentity): Promise<KeptIdentity> {
    const { renew, log } = this.#options;
    const now = this.#now();
    if (now < renewalDueAt(certificateOf(identity))) return identity;
    if (isAhead(this.#nextAttemptMs, now.getTime(), maxRetryDelayMs)) return identity;
    try {
      checkValidity(identity, now);
      const next = await renew(identity);
      await this.#begin(next);
      return next;
    } catch (error) {
      this.#failures += 1;
      this.#nextAttemptMs = now.getTime() + retryDelayMs(this.#failures, this.#random());
      const facts = { err: error, failures: this.#failures, nextAttempt: new Date(this.#nextAttemptMs) };
      const message = `the certificate of this host could not be renewed; it is valid until ${certificateOf(identity).validTo}`;
      if (isUrgent(identity, now)) log.error(facts, message);
      else log.warn(facts, message);
      return identity;
    }
  }

  /** @returns what is revoked; null: nobody knows */
  async #followRevocations(identity: KeptIdentity): Promise<ReadonlySet<string> | null> {
    const { store, listRevoked, log } = this.#options;
    const known = await this.#revocations();
    const now = this.#now();
    if (known !== null && isAhead(this.#nextRevocationsMs, now.getTime(), revocationIntervalMs)) return known;
    this.#nextRevocationsMs = now.getTime() + revocationIntervalMs;
    try {
      // What the clock says is clearer than how a controller refuses.
      checkValidity(identity, now);
      // What was revoked once stays so, whatever is said later.
      const revoked = new Set([...(known ?? []), ...(await listRevoked(identity))]);
      await store.keepRevoked(revoked);
      this.#isDamageTold = false;
      return revoked;
    } catch (error) {
      const counts = known === null ? 'it is let in when it has answered' : 'its last word counts';
      log.warn({ err: error }, `the controller could not be asked what it has revoked; ${counts}`);
      return known;
    }
  }

  /** @returns null: what is kept cannot be used, which is told once */
  async #revocations(): Promise<ReadonlySet<string> | null> {
    const { store, log } = this.#options;
    try {
      const revoked = await store.revoked();
      this.#isDamageTold = false;
      return revoked;
    } catch (error) {
      if (!(error instanceof IdentityError) || error.code !== 'REVOCATIONS_DAMAGED') throw error;
      if (!this.#isDamageTold)
        log.warn({ err: error }, 'no controller is let in until it has said anew what is revoked');
      this.#isDamageTold = true;
      return null;
    }
  }
}

/** True when a moment is still to be waited for. One that is too far away was set before the clock went back. */
function isAhead(momentMs: number, nowMs: number, longestMs: number): boolean {
  return momentMs > nowMs && momentMs - nowMs <= longestMs;
}

function isUrgent(identity: KeptIdentity, now: Date): boolean {
  const { validFromDate, validToDate } = certificateOf(identity);
  const lifetimeMs = validToDate.getTime() - validFromDate.getTime();
  return validToDate.getTime() - now.getTime() < lifetimeMs * urgentFraction;
}
