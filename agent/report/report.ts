import { messageOf } from '../../common/errors.ts';
import { Report, type ThinnedReport } from '../../proto/generated/stillpoint/v1/report.ts';
import { ReportError } from './errors.ts';

/** What a report says, as report.proto has it. */
export type ReportBody = NonNullable<Report['body']>;
export type ReportKind = ReportBody['$case'];

/**
 * What a report is worth when there is no room for all. `state`: how something is; the newest one counts. `progress`:
 * of a job that has not ended. `lasting`: what has happened, once and for all.
 */
export type ReportWeight = 'state' | 'progress' | 'lasting';

/** Something to be told to the controller. */
export interface NewReport {
  /** What it is about: reports of one kind about one subject supersede each other, unless they are lasting. */
  readonly subject: string;
  readonly weight: ReportWeight;
  readonly body: ReportBody;
}

/** Reports of one kind that were left out. */
export interface ThinnedCount {
  readonly kind: string;
  /** A later report says their content again. */
  readonly superseded: number;
  readonly lost: number;
  readonly firstLostMs: number | null;
  readonly lastLostMs: number | null;
}

/** A report as it is kept; its places among the others are added when it is sent. */
export function encodeReport(report: {
  readonly id: string;
  readonly timeMs: number;
  readonly body: ReportBody;
}): Uint8Array {
  const { id, timeMs, body } = report;
  return Report.encode({ id, sequence: 0n, previousSequence: 0n, time: new Date(timeMs), body }).finish();
}

/**
 * A kept report, ready to be sent.
 * @param previousSequence 0: there is none before it
 * @throws ReportError OUTBOX_DAMAGED
 */
export function decodeReport(content: Uint8Array, sequence: number, previousSequence: number): Report {
  return {
    ...decoded(content, sequence),
    sequence: BigInt(sequence),
    previousSequence: BigInt(previousSequence),
  };
}

function decoded(content: Uint8Array, sequence: number): Report {
  try {
    return Report.decode(content);
  } catch (error) {
    const message = `report ${sequence} of the outbox cannot be read: ${messageOf(error)}`;
    throw new ReportError('OUTBOX_DAMAGED', message, { cause: error });
  }
}

/** The report that says what was left out. */
export function thinnedReport(counts: readonly ThinnedCount[]): ThinnedReport {
  return {
    kinds: counts.map(({ kind, superseded, lost, firstLostMs, lastLostMs }) => ({
      kind,
      superseded: BigInt(superseded),
      lost: BigInt(lost),
      firstLostTime: dateOf(firstLostMs),
      lastLostTime: dateOf(lastLostMs),
    })),
  };
}

/** A time for a report; null: there is none. */
export function dateOf(timeMs: number | null): Date | undefined {
  return timeMs === null ? undefined : new Date(timeMs);
}
