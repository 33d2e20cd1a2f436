/** What work passes before it moves data, so that it can be slowed down or held back. */
export interface Throttle {
  /** Resolves when so many bytes may be moved. Rejects with the reason of the signal. */
  take(bytes: number, signal?: AbortSignal): Promise<void>;
}

/** Several as one, passed one after the other. */
export function throttleOf(...throttles: readonly (Throttle | undefined)[]): Throttle {
  return {
    take: async (bytes, signal) => {
      for (const throttle of throttles) await throttle?.take(bytes, signal);
    },
  };
}
