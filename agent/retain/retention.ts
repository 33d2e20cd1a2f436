import { momentBefore } from '../../common/span.ts';
import { Calendar, type PeriodKind, periodKinds } from './periods.ts';

/** What retention needs to know of a backup of one machine in one storage. */
export interface RetentionCandidate {
  readonly id: string;
  /** T1, RFC 3339. */
  readonly pointInTime: string;
  /** It can be restored: what is damaged never counts, and is never removed. */
  readonly good: boolean;
  readonly protected: boolean;
  /** The storage keeps it until then, RFC 3339. */
  readonly lockedUntil?: string | null | undefined;
}

/** How many backups stay; each rule counts alone, and a backup stays when any rule keeps it. */
export interface KeepRules extends Readonly<Partial<Record<PeriodKind, number | undefined>>> {
  /** The newest ones. */
  readonly last?: number | undefined;
  /** All that are younger than a span such as `14d` (common/span.ts). */
  readonly within?: string | undefined;
}

export interface RetentionCircumstances {
  /** `null`, or no rule in it: everything stays. */
  readonly keep: KeepRules | null;
  /** IANA name; decides what a day is. */
  readonly timeZone: string;
  readonly now: Date;
}

export interface RetentionDecision<Backup> {
  readonly backup: Backup;
  readonly keep: boolean;
  /** Everything that keeps it; empty if nothing does. */
  readonly reasons: readonly string[];
  /** It is the newest that can be restored, and stays whatever the rules say. */
  readonly isLastGood: boolean;
}

/** Said of what cannot be restored. */
export const damagedReason = 'damaged: not counted, not removed; stillpoint verify, stillpoint delete';

/** True when there is nothing by which anything would ever be removed. */
export function keepsEverything(keep: KeepRules | null): boolean {
  return keep === null || Object.values(keep).every((rule) => rule === undefined);
}

/**
 * Decides which backups of one machine in one storage stay, and says why; oldest first. A pure function.
 *
 * For each kind of period (hour, day, ISO week, month, year) the newest good backup of the period stays, for the N
 * most recent periods that have one. A protected backup counts as any other: taking its protection away changes
 * nothing for the others. A backup from the future (a clock was wrong) stays and counts for nothing.
 *
 * @throws RangeError for a time zone or a span that is none
 */
export function decideRetention<Backup extends RetentionCandidate>(
  backups: readonly Backup[],
  { keep, timeZone, now }: RetentionCircumstances,
): readonly RetentionDecision<Backup>[] {
  const ordered = backups.toSorted(order);
  const reasons = new Map<Backup, string[]>(ordered.map((backup) => [backup, []]));
  const counted = ordered.filter((backup) => backup.good && timeOf(backup) <= now.getTime()).toReversed();
  const [lastGood] = counted;
  for (const [backup, reason] of keptByRules(counted, { keep, timeZone, now }))
    reasons.get(backup)?.push(reason);
  for (const backup of ordered) {
    const own = reasons.get(backup);
    if (keepsEverything(keep)) own?.push('no rule removes anything');
    if (backup.protected) own?.push('protected');
    if (isLocked(backup, now)) own?.push(`locked until ${backup.lockedUntil}`);
    if (!backup.good) own?.push(damagedReason);
    else if (timeOf(backup) > now.getTime()) own?.push('its time is in the future: look at the clock');
    if (backup === lastGood) own?.push('the last good one');
  }
  return ordered.map((backup) => {
    const own = reasons.get(backup) ?? [];
    return { backup, keep: own.length > 0, reasons: own, isLastGood: backup === lastGood };
  });
}

/** What each rule keeps. `newestFirst`: good backups that are not from the future. */
function keptByRules<Backup extends RetentionCandidate>(
  newestFirst: readonly Backup[],
  { keep, timeZone, now }: RetentionCircumstances,
): readonly (readonly [Backup, string])[] {
  if (keep === null) return [];
  const kept: (readonly [Backup, string])[] = [];
  const { last = 0, within } = keep;
  for (const [index, backup] of newestFirst.slice(0, last).entries())
    kept.push([backup, `last ${last} (${ordinal(index + 1)})`]);
  const calendar = new Calendar(timeZone);
  const named = newestFirst.map((backup) => ({
    backup,
    periods: calendar.periodsOf(new Date(backup.pointInTime)),
  }));
  for (const kind of periodKinds) {
    const seen = new Set<string>();
    for (const { backup, periods } of named) {
      if (seen.size >= (keep[kind] ?? 0)) break;
      const period = periods[kind];
      if (seen.has(period)) continue;
      seen.add(period);
      kept.push([backup, `${kind} ${period}`]);
    }
  }
  if (within !== undefined) {
    const since = momentBefore(now, within).getTime();
    for (const backup of newestFirst) if (timeOf(backup) >= since) kept.push([backup, `within ${within}`]);
  }
  return kept;
}

function isLocked({ lockedUntil = null }: RetentionCandidate, now: Date): boolean {
  return lockedUntil !== null && new Date(lockedUntil) > now;
}

function timeOf({ pointInTime }: RetentionCandidate): number {
  return new Date(pointInTime).getTime();
}

function order(a: RetentionCandidate, b: RetentionCandidate): number {
  if (timeOf(a) !== timeOf(b)) return timeOf(a) - timeOf(b);
  return a.id < b.id ? -1 : Number(a.id > b.id);
}

function ordinal(number: number): string {
  const endings: ReadonlyMap<string, string> = new Map([
    ['one', 'st'],
    ['two', 'nd'],
    ['few', 'rd'],
  ]);
  return `${number}${endings.get(new Intl.PluralRules('en', { type: 'ordinal' }).select(number)) ?? 'th'}`;
}
