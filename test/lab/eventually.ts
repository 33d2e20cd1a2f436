import { setTimeout as sleep } from 'node:timers/promises';

export interface EventuallyOptions {
  /** Give up after this long; 10 s if not given. */
  readonly timeoutMs?: number | undefined;
  /** Look again after this long; 20 ms if not given. */
  readonly intervalMs?: number | undefined;
}

/**
 * Calls `look` until it neither throws nor returns `undefined`, `null` or `false`, and returns what it gave.
 * For what offers no event to wait for.
 *
 * @throws Error with the last failure as its cause, after `timeoutMs`.
 */
export async function eventually<T>(
  look: () => Promise<T | undefined | null | false> | T | undefined | null | false,
  options: EventuallyOptions = {},
): Promise<T> {
  const timeoutMs = options.timeoutMs ?? 10_000;
  const deadline = performance.now() + timeoutMs;
  let lastError: unknown;
  for (;;) {
    try {
      const value = await look();
      if (value !== undefined && value !== null && value !== false) return value;
      lastError = undefined;
    } catch (error) {
      lastError = error;
    }
    if (performance.now() >= deadline) {
      const reason = lastError instanceof Error ? `: ${lastError.message}` : '';
      throw new Error(`did not happen within ${timeoutMs} ms${reason}`, { cause: lastError });
    }
    await sleep(options.intervalMs ?? 20);
  }
}
