import { JobBytes } from './jobBytes.ts';

/** How the last reading of a changed configuration went. */
export interface ReloadFigures {
  readonly ok: boolean;
  readonly atMs: number;
}

/** Reports that wait to be sent to a controller. */
export interface OutboxFigures {
  readonly waiting: number;
  /** null: none waits. */
  readonly oldestAtMs: number | null;
}

/**
 * What parts of the service know of themselves and let others tell. A part that is there sets its function; the figures
 * of one that is not are left out.
 */
export class ServiceFigures {
  readonly jobBytes = new JobBytes();
  /** null: the configuration has not changed since the start. */
  configReload: (() => ReloadFigures | null) | null = null;
  outbox: (() => OutboxFigures | null) | null = null;
  /** Alerts that no webhook has taken yet. */
  waitingAlerts: (() => number) | null = null;
}
