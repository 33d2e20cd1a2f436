const dayMs = 24 * 3600 * 1000;

/** How long what a backup refers to is kept from being deleted. */
export interface Retention {
  /** From the commit of each backup on. */
  readonly periodMs: number;
  /**
   * What several backups share gets so much more, and is extended only when less than the period is left: otherwise
   * every backup would have to extend all that it shares with the one before.
   */
  readonly slackMs: number;
  /** Milliseconds since 1970; the clock of this host unless told. */
  readonly now?: (() => number) | undefined;
}

/** The slack is a quarter of the period, and a day at least: something shared is then extended every so often. */
export function retentionOfDays(days: number): Retention {
  const periodMs = days * dayMs;
  return { periodMs, slackMs: Math.max(dayMs, Math.ceil(periodMs / 4)) };
}

/** A commit that begins has so much time until it is made; what is shared must be kept so much longer. */
export function marginMs({ slackMs }: Retention): number {
  return Math.floor(slackMs / 8);
}
