import { CliError } from './errors.ts';

const unitsMs = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/**
 * Reads a duration as it is typed: `90s`, `30m`, `2h`, `30d`. In milliseconds.
 * @throws CliError USAGE
 */
export function parseDuration(text: string, option: string, hint: string): number {
  const match = /^([1-9][0-9]{0,5})([smhd])$/.exec(text);
  const unit = match?.[2];
  if (match === null || (unit !== 's' && unit !== 'm' && unit !== 'h' && unit !== 'd'))
    throw new CliError('USAGE', `${option} takes a duration as 90s, 30m, 2h or 30d, not ${text}`, hint);
  return Number(match[1]) * unitsMs[unit];
}
