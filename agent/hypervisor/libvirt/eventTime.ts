/**
 * Both clocks, read where the event arrives: on the way to the parent there may be a queue. The monotonic
 * one is the kernel's (`CLOCK_MONOTONIC`), so it is the same in all processes.
 */
export function eventTime(): { readonly atMs: number; readonly monotonicMs: number } {
  return { atMs: Date.now(), monotonicMs: Number(process.hrtime.bigint()) / 1e6 };
}
