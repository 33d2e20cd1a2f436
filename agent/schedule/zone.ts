/** A stretch of time during which the clocks of a zone keep one distance from UTC. */
export interface ZoneStretch {
  /** Its first instant; where the clocks do not change for long, any one. */
  readonly startMs: number;
  /** Its last instant is just before this one. */
  readonly endMs: number;
  /** What the clocks show, less UTC. */
  readonly offsetMs: number;
  /** That of the stretch before; the same one where nothing changes. */
  readonly previousOffsetMs: number;
}

/** The instants at which the clocks show a time: none, one, or two. */
export interface ClockInstants {
  readonly firstMs: number;
  readonly lastMs: number;
  /** The clocks never show it: both are the instant at which they jump over it. */
  readonly skipped: boolean;
}

const dayMs = 86_400_000;
/** Since 1990 no zone has changed its clocks twice within a week (Recife did after a week, in 2000). */
const probeMs = 3 * dayMs;
/** Changes of the clocks are looked for so far at a time. */
const reachMs = 400 * dayMs;
/** A schedule asks about now and soon; what was asked about long ago is forgotten. */
const rememberedStretches = 16;

/**
 * The clocks of a time zone. A time on them is a number, too: the milliseconds that it would be in UTC, "clock time"
 * here (`clockMs`).
 *
 * Asking Intl takes microseconds; so the changes of the clocks are looked up once and remembered.
 *
 * @throws RangeError for what is no IANA time zone
 */
export class ZoneClock {
  readonly timeZone: string;
  readonly #format: Intl.DateTimeFormat;
  #stretches: readonly ZoneStretch[] = [];

  constructor(timeZone: string) {
    this.timeZone = timeZone;
    this.#format = new Intl.DateTimeFormat('en-u-ca-gregory-nu-latn', {
      timeZone,
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      minute: 'numeric',
      second: 'numeric',
    });
  }

  /** What the clocks show at an instant, as clock time. */
  clockAt(instantMs: number): number {
    return instantMs + this.stretchAt(instantMs).offsetMs;
  }

  /** The instants at which the clocks show a time. */
  instantsOf(clockMs: number): ClockInstants {
    // No zone is further from UTC than a day, so it is in one of the stretches around.
    const early = this.stretchAt(clockMs - dayMs);
    const late = this.stretchAt(clockMs + dayMs);
    const firstMs = clockMs - early.offsetMs;
    const lastMs = clockMs - late.offsetMs;
    if (early.offsetMs === late.offsetMs) return { firstMs, lastMs: firstMs, skipped: false };
    const changeMs = late.startMs;
    const inFirst = firstMs < changeMs;
    const inLast = lastMs >= changeMs;
    if (inFirst) return { firstMs, lastMs: inLast ? lastMs : firstMs, skipped: false };
    if (inLast) return { firstMs: lastMs, lastMs, skipped: false };
    return { firstMs: changeMs, lastMs: changeMs, skipped: true };
  }

  /** The stretch that an instant lies in. */
  stretchAt(instantMs: number): ZoneStretch {
    const known = this.#stretches.find(({ startMs, endMs }) => startMs <= instantMs && instantMs < endMs);
    if (known !== undefined) return known;
    const found = this.#findStretch(instantMs);
    this.#stretches = [found, ...this.#stretches.slice(0, rememberedStretches - 1)];
    return found;
  }

  #findStretch(instantMs: number): ZoneStretch {
    const offsetMs = this.#offsetAt(instantMs);
    const differs = (atMs: number): boolean => this.#offsetAt(atMs) !== offsetMs;
    // Without a change in sight the stretch ends well before the last place that was looked at: then all that is
    // around an end where nothing changes is known to be the same.
    let startMs = instantMs - reachMs / 2;
    let previousOffsetMs = offsetMs;
    for (let atMs = instantMs - probeMs; atMs > instantMs - reachMs; atMs -= probeMs) {
      if (!differs(atMs)) continue;
      startMs = boundary(atMs, atMs + probeMs, (middleMs) => !differs(middleMs));
      previousOffsetMs = this.#offsetAt(startMs - 1);
      break;
    }
    let endMs = instantMs + reachMs / 2;
    for (let atMs = instantMs + probeMs; atMs < instantMs + reachMs; atMs += probeMs) {
      if (!differs(atMs)) continue;
      endMs = boundary(atMs - probeMs, atMs, differs);
      break;
    }
    return { startMs, endMs, offsetMs, previousOffsetMs };
  }

  #offsetAt(instantMs: number): number {
    // Whole seconds, rounded down also before 1970.
    const wholeMs = Math.floor(instantMs / 1000) * 1000;
    const shown = new Map<string, number>();
    for (const { type, value } of this.#format.formatToParts(wholeMs)) shown.set(type, Number(value));
    const part = (type: Intl.DateTimeFormatPartTypes): number => shown.get(type) ?? 0;
    return (
      Date.UTC(part('year'), part('month') - 1, part('day'), part('hour'), part('minute'), part('second')) -
      wholeMs
    );
  }
}

/** The first millisecond in (`lowMs`, `highMs`] at which `isAfter` holds; it holds at `highMs`, and from then on. */
function boundary(lowMs: number, highMs: number, isAfter: (ms: number) => boolean): number {
  let low = lowMs;
  let high = highMs;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (isAfter(middle)) high = middle;
    else low = middle;
  }
  return high;
}
