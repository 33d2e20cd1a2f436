import type { X509Certificate } from 'node:crypto';

/** Renewal begins when so much of the lifetime has passed, as is usual with short-lived certificates. */
const dueFraction = 2 / 3;
/** Each certificate is due later by a part of this fraction of its lifetime: hosts that joined together part. */
const jitterFraction = 1 / 12;

const firstDelayMs = 60_000;
/** The longest that is waited after a failure. */
export const maxRetryDelayMs = 6 * 3_600_000;

/** When the renewal of a certificate begins: between 2/3 and 3/4 of its lifetime, always the same for one. */
export function renewalDueAt({ validFromDate, validToDate, serialNumber }: X509Certificate): Date {
  const lifetimeMs = validToDate.getTime() - validFromDate.getTime();
  // Serial numbers are random: their last digits need no further hashing.
  const jitter = Number.parseInt(serialNumber.slice(-6), 16) / 0x1000000;
  return new Date(validFromDate.getTime() + lifetimeMs * (dueFraction + jitterFraction * jitter));
}

/**
 * How long to wait after a renewal has failed so many times in a row: twice as long each time, from a minute to six
 * hours, of which a random half is left out, so that hosts do not come back together.
 *
 * @param random from 0 to 1
 */
export function retryDelayMs(failures: number, random: number): number {
  const wholeMs = Math.min(firstDelayMs * 2 ** (failures - 1), maxRetryDelayMs);
  return wholeMs * (1 - random / 2);
}
