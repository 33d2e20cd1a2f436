import * as z from 'zod';
import type { ErrorRecord } from '../../common/errors.ts';
import type { ReportedError } from '../../proto/generated/stillpoint/v1/report.ts';
import type { Told, ToldSubject } from './outbox.ts';
import type { NewReport } from './report.ts';

/** A report with what the controller knows by it. */
export interface Telling {
  readonly report: NewReport;
  readonly told: Told;
}

const kind = 'alert';
const errorSchema = z.object({
  code: z.string(),
  message: z.string(),
  hint: z.string().optional(),
  retryable: z.boolean(),
});

/**
 * What there is to tell about something that may be wrong: once when it is, and once when it is over.
 * @param told the alerts that are raised, as the outbox has them
 * @param error null: nothing is wrong
 * @returns undefined where the controller knows
 */
export function alertTelling(
  told: ReadonlyMap<string, ToldSubject>,
  key: string,
  error: ErrorRecord | null,
): Telling | undefined {
  const last = told.get(key);
  const before = last === undefined ? null : errorSchema.parse(JSON.parse(last.seen));
  // A message may have figures in it, and be another one each time.
  if (before?.code === error?.code && last?.isSure !== false) return undefined;
  const about = error ?? before;
  if (about === null) return undefined;
  return {
    report: {
      subject: key,
      weight: 'lasting',
      body: { $case: kind, value: { key, raised: error !== null, error: reportedError(about) } },
    },
    told: { kind, subject: key, seen: error === null ? null : JSON.stringify(error) },
  };
}

/** An error as reports have it. */
export function reportedError({ code, message, hint = '', retryable }: ErrorRecord): ReportedError {
  // A message holds what a program printed: no report may become too large for its way.
  return {
    code,
    message: message.slice(0, messageLengthMax),
    hint: hint.slice(0, messageLengthMax),
    retryable,
  };
}

const messageLengthMax = 16_384;
