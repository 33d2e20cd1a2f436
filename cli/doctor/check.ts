/** One thing that was looked at. */
export interface Check {
  readonly name: string;
  readonly verdict: 'ok' | 'warn' | 'fail';
  readonly message: string;
  /** What to do about it. */
  readonly hint: string | null;
}

export function ok(name: string, message: string): Check {
  return { name, verdict: 'ok', message, hint: null };
}

export function warn(name: string, message: string, hint: string): Check {
  return { name, verdict: 'warn', message, hint };
}

export function fail(name: string, message: string, hint: string): Check {
  return { name, verdict: 'fail', message, hint };
}
