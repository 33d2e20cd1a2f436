/** What came of starting a backup in isolation; stored beside it, and no part of it. */
export interface Verification {
  /** RFC 3339. */
  readonly at: string;
  readonly ok: boolean;
  readonly start: 'resume' | 'boot';
  /** What was seen of the guest; `null`: nothing that proves that it works. */
  readonly evidence: 'serial' | 'agent' | 'screen' | null;
  /** For people. */
  readonly detail: string;
  readonly durationMs: number;
  /** File beside it with what the screen showed at the end. */
  readonly picture: string | null;
}
