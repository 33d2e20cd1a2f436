/** Works until it is done, the job is cancelled, or `guard` rejects. */
export async function guarded<T>(
  { signal }: { readonly signal: AbortSignal },
  guard: (signal: AbortSignal) => Promise<void>,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const ended = new AbortController();
  const stopped = new AbortController();
  const watching = guard(ended.signal).catch((error: unknown) => stopped.abort(error));
  try {
    return await work(AbortSignal.any([signal, stopped.signal]));
  } catch (error) {
    // The reason is what stopped it, not that it was stopped.
    throw stopped.signal.aborted ? stopped.signal.reason : error;
  } finally {
    ended.abort();
    await watching;
  }
}
